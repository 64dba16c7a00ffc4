"""`python -m loadtest COMMAND`; COMMANDS are what there is."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import locust  # noqa: F401 (first of all: it patches sockets and ssl for gevent)

from loadtest.peers.command import peers_command
from loadtest.traffic import ScenarioError

HOST = "http://localhost:3000"
RESULTS = Path("sweep.jsonl")


def sweep_command(arguments: list[str]) -> None:
    """Measure models one by one under every load, and keep what was found."""
    from loadtest.rows import Load
    from loadtest.sweep import sweep

    parser = argparse.ArgumentParser("python -m loadtest sweep", description=sweep_command.__doc__)
    parser.add_argument("--host", default=HOST, help="default: %(default)s")
    parser.add_argument("--models", default="lenet5", help="names, or `published`: all (default: %(default)s)")
    parser.add_argument("--precisions", default="", help="such as fp32,int8 (default: the server's choice)")
    parser.add_argument("--images", type=Path, default=Path("images/mnist5k"), help="default: %(default)s")
    parser.add_argument("--seconds", type=float, default=10, help="of a run (default: %(default)s)")
    parser.add_argument("--in-flight", type=int, default=32, help="requests, offline (default: %(default)s)")
    parser.add_argument("--p99-ms", type=float, default=100, help="the bound (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=6, help="of the search for the rate (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=1, help="of all engines in turn (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="goes on with it (default: %(default)s)")
    options = parser.parse_args(arguments)
    precisions = options.precisions.split(",") if options.precisions else [None]
    load = Load(seconds=options.seconds, in_flight=options.in_flight, p99_ms=options.p99_ms, steps=options.steps)
    sweep(options.host, options.models.split(","), precisions, options.images, load, options.rounds, options.out)
    print(f"wrote {options.out}; now: python -m loadtest report {options.out}")


def diff_command(arguments: list[str]) -> None:
    """Compare two sweeps, with intervals from their rounds."""
    from loadtest import rows
    from loadtest.diff import table

    parser = argparse.ArgumentParser("python -m loadtest diff", description=diff_command.__doc__)
    parser.add_argument("before", type=Path, metavar="A")
    parser.add_argument("after", type=Path, metavar="B")
    options = parser.parse_args(arguments)
    print(table(rows.read(options.before)[1], rows.read(options.after)[1]))


def report_command(arguments: list[str]) -> None:
    """Draw what a sweep found: a page that needs no network, pictures, and CSV."""
    from loadtest.report.page import write_report

    parser = argparse.ArgumentParser("python -m loadtest report", description=report_command.__doc__)
    parser.add_argument("results", type=Path, nargs="?", default=RESULTS, help="default: %(default)s")
    parser.add_argument("--out", type=Path, default=Path("report"), help="folder (default: %(default)s)")
    options = parser.parse_args(arguments)
    write_report(options.results, options.out)
    print(f"wrote {options.out / 'index.html'}")


def smoke_command(arguments: list[str]) -> None:
    """Run every scenario once, in some seconds each, and check all answers."""
    from loadtest.smoke import smoke

    parser = argparse.ArgumentParser("python -m loadtest smoke", description=smoke_command.__doc__)
    parser.add_argument("--host", default=HOST, help="default: %(default)s")
    parser.add_argument("--models", default="lenet5", help="default: %(default)s")
    parser.add_argument("--images", type=Path, default=Path("images/mnist5k"), help="default: %(default)s")
    options = parser.parse_args(arguments)
    smoke(options.host, options.models.split(","), options.images)


def promises_command(arguments: list[str]) -> None:
    """See what a server does under a flood, an overload, and for very many requests."""
    from loadtest.promises import promises

    parser = argparse.ArgumentParser("python -m loadtest promises", description=promises_command.__doc__)
    parser.add_argument("--host", default=HOST, help="default: %(default)s")
    parser.add_argument("--light", default="lenet5", help="asked now and then (default: %(default)s)")
    parser.add_argument("--heavy", default="vgg19", help="flooded (default: %(default)s)")
    parser.add_argument("--images", type=Path, default=Path("images/mnist5k"), help="default: %(default)s")
    parser.add_argument("--seconds", type=float, default=30, help="of a flood; twice that overload (default: 30)")
    parser.add_argument("--requests", type=int, default=0, help="of the endurance run (default: none)")
    options = parser.parse_args(arguments)
    promises(options.host, options.light, options.heavy, options.images, options.seconds, options.requests)


COMMANDS = {
    "sweep": sweep_command,
    "diff": diff_command,
    "report": report_command,
    "smoke": smoke_command,
    "promises": promises_command,
    "peers": peers_command,
}


def main() -> None:
    """Run one command."""
    parser = argparse.ArgumentParser("python -m loadtest", description="What each model gives and costs under load.")
    parser.add_argument("command", choices=COMMANDS, help="; ".join(f"{n}: {c.__doc__}" for n, c in COMMANDS.items()))
    options, rest = parser.parse_known_args(sys.argv[1:2])
    try:
        COMMANDS[options.command](rest + sys.argv[2:])
    except ScenarioError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
