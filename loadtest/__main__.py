"""Command line: `python -m loadtest COMMAND`, with the commands in COMMANDS."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import locust  # noqa: F401 (imported first, because locust patches sockets and ssl for gevent)

from loadtest.landscape.command import landscape_command
from loadtest.options import RESULTS, add_models, names, server_parser, server_under_test
from loadtest.peers.command import peers_command
from loadtest.protocols.command import protocols_command
from loadtest.scale.command import scale_command, simulate_command
from loadtest.traffic import ScenarioError
from models.closed_pipe import may_be_closed

SWEEP = RESULTS / "sweep.jsonl"
BROKEN = 3  # exit code of `diff` if a rule of --fail-if is true; 1 is an error


def sweep_command(arguments: list[str]) -> None:
    """Measure models one by one under every load, and write the results."""
    from loadtest.rows import SweepLoad
    from loadtest.sweep import SweepPlan, sweep

    parser = server_parser("sweep", sweep_command.__doc__)
    add_models(parser, note=", or `published` for all")
    parser.add_argument("--precisions", type=names, help="such as fp32,int8 (default: the server's choice)")
    parser.add_argument("--seconds", type=float, default=10, help="of each run (default: %(default)s)")
    parser.add_argument("--in-flight", type=int, default=32, help="requests, offline (default: %(default)s)")
    parser.add_argument("--p99-ms", type=float, default=100, help="bound of the p99 (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=6, help="of the search for the rate (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=1, help="over all engines in turn (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=SWEEP, help="results; those there are kept (default: %(default)s)")
    options = parser.parse_args(arguments)
    plan = SweepPlan(
        server=server_under_test(options),
        models=options.models,
        precisions=options.precisions or [None],
        images=options.images,
        load=SweepLoad(
            seconds=options.seconds, in_flight=options.in_flight, p99_ms=options.p99_ms, steps=options.steps
        ),
        rounds=options.rounds,
    )
    sweep(plan, options.out)
    print(f"wrote {options.out}; now: python -m loadtest report {options.out}")


def diff_command(arguments: list[str]) -> None:
    """Compare two sweeps, with confidence intervals from their rounds."""
    from loadtest import rows
    from loadtest.diff import SHORT, broken_rules, compare_sweeps, parse_rule

    parser = argparse.ArgumentParser("python -m loadtest diff", description=diff_command.__doc__)
    parser.add_argument("before", type=Path, metavar="A")
    parser.add_argument("after", type=Path, metavar="B")
    parser.add_argument(
        "--fail-if",
        action="append",
        default=[],
        metavar="RULE",
        help=f"such as 'p99 > 10 %%' or 'rate < -10 %%', the change from A to B, of any engine; may be repeated; of"
        f" {', '.join(SHORT)}. Exit code {BROKEN} if one is true",
    )
    options = parser.parse_args(arguments)
    rules = [parse_rule(text) for text in options.fail_if]
    before, after = (rows.read(path)[1] for path in (options.before, options.after))
    print(compare_sweeps(before, after), flush=True)
    if rules and (broken := broken_rules(before, after, rules)):
        for line in broken:
            print(f"failed: {line}", file=sys.stderr)
        sys.exit(BROKEN)


def report_command(arguments: list[str]) -> None:
    """Draw a sweep, and say which network to serve: a page that needs no network, pictures, and CSV."""
    from loadtest.report.page import write_report

    parser = argparse.ArgumentParser("python -m loadtest report", description=report_command.__doc__)
    parser.add_argument("results", type=Path, nargs="?", default=SWEEP, help="default: %(default)s")
    parser.add_argument("--out", type=Path, default=RESULTS / "report", help="folder (default: %(default)s)")
    parser.add_argument("--p99-ms", type=float, help="your bound of the p99, for the answer at the top (default: none)")
    options = parser.parse_args(arguments)
    for sentence in write_report(options.results, options.out, options.p99_ms):
        print(sentence)
    print(f"wrote {options.out / 'index.html'}")


def smoke_command(arguments: list[str]) -> None:
    """Run every scenario once, for two seconds each, and check all answers."""
    from loadtest.smoke import smoke

    parser = server_parser("smoke", smoke_command.__doc__)
    add_models(parser)
    options = parser.parse_args(arguments)
    smoke(server_under_test(options), options.models, options.images)


def promises_command(arguments: list[str]) -> None:
    """Test a server beside a flood, under overload, and over very many requests."""
    from loadtest.promises import promises

    parser = server_parser("promises", promises_command.__doc__)
    parser.add_argument("--light", default="lenet5", help="model of the single requests (default: %(default)s)")
    parser.add_argument("--heavy", default="vgg19", help="model of the flood (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=30, help="of the flood; overload takes twice (default: 30)")
    parser.add_argument("--requests", type=int, default=0, help="of the endurance run (default: none)")
    options = parser.parse_args(arguments)
    server = server_under_test(options)
    promises(server, options.light, options.heavy, options.images, options.seconds, options.requests)


COMMANDS = {
    "sweep": sweep_command,
    "diff": diff_command,
    "report": report_command,
    "smoke": smoke_command,
    "promises": promises_command,
    "peers": peers_command,
    "protocols": protocols_command,
    "landscape": landscape_command,
    "scale": scale_command,
    "simulate": simulate_command,
}


def main() -> None:
    """Run the command of the first argument; exit with 1 and one line for a ScenarioError."""
    parser = argparse.ArgumentParser("python -m loadtest", description="Load tests of a running server, over HTTP.")
    parser.add_argument("command", choices=COMMANDS, help="; ".join(f"{n}: {c.__doc__}" for n, c in COMMANDS.items()))
    options, rest = parser.parse_known_args(sys.argv[1:2])
    try:
        COMMANDS[options.command](rest + sys.argv[2:])
    except ScenarioError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    with may_be_closed():
        main()
