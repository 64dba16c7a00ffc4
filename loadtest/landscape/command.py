"""Command line: `python -m loadtest landscape`."""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

from engines.published.manifest import GRAPHS
from loadtest.options import RESULTS, names
from loadtest.rows import SweepLoad
from loadtest.traffic import ScenarioError

IN_FLIGHT = 16  # requests, offline
STEPS = 4  # of the search for the rate


def landscape_command(arguments: list[str]) -> None:
    """Time every ImageNet network at its paper's input on this machine, with random weights where none are imported."""
    parser = argparse.ArgumentParser("python -m loadtest landscape", description=landscape_command.__doc__)
    parser.add_argument("--models", type=names, default=[], help="separated by commas (default: all of ImageNet's)")
    parser.add_argument("--precisions", type=precisions, default="fp32,bf16", help="default: %(default)s")
    parser.add_argument("--rounds", type=positive, default=3, help="over all networks (default: %(default)s)")
    parser.add_argument("--seconds", type=positive, default=4, help="of each run (default: %(default)s)")
    parser.add_argument("--p99-ms", type=positive, default=500, help="bound of the p99 (default: %(default)s)")
    parser.add_argument("--keep", action="store_true", help="keep each model for the next round: 11 GB for all")
    parser.add_argument(
        "--out",
        type=Path,
        default=RESULTS / "landscape.jsonl",
        help="results; those there are kept (default: %(default)s)",
    )
    parser.add_argument(
        "--figure", action="store_true", help="measure nothing: draw --out's rows into a .png and a .md beside --out"
    )
    options = parser.parse_args(arguments)
    if options.figure:
        from loadtest.landscape.document import write_document

        for path in write_document(options.out):
            print(f"wrote {path}")
        return

    from loadtest.landscape.measure import LandscapePlan, landscape
    from loadtest.peers.command import end

    signal.signal(signal.SIGTERM, end)
    plan = LandscapePlan(
        models=options.models,
        precisions=options.precisions,
        load=SweepLoad(seconds=options.seconds, in_flight=IN_FLIGHT, p99_ms=options.p99_ms, steps=STEPS),
        rounds=options.rounds,
        folder=RESULTS / "landscape",
        keep=options.keep,
    )
    try:
        landscape(plan, options.out)
    except OSError as error:
        raise ScenarioError(f"{error.filename or options.out}: {error.strerror}") from error
    except KeyboardInterrupt:
        print(f"\nstopped; the same command goes on from what {options.out} has", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    print(f"wrote {options.out}")


def precisions(text: str) -> list[str]:
    """Split `fp32,bf16` into precisions. Raises ArgumentTypeError for an unknown one."""
    chosen = text.split(",")
    if unknown := [name for name in chosen if name not in GRAPHS]:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(GRAPHS)}")
    return list(dict.fromkeys(chosen))


def positive(text: str) -> int:
    """Return a whole number of at least 1. Raises ArgumentTypeError for other text."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of at least 1")
    return int(text)
