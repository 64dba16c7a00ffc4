"""Command line: `python -m loadtest peers`."""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path
from types import FrameType

from loadtest.options import RESULTS, names, numbers
from loadtest.peers import AS_INSTALLED
from loadtest.peers.compare import PeerComparison, compare
from loadtest.peers.photos import FOLDER


def peers_command(arguments: list[str]) -> None:
    """Measure convserve and other servers of the same model, side by side on this machine."""
    parser = argparse.ArgumentParser("python -m loadtest peers", description=peers_command.__doc__)
    parser.add_argument(
        "--models", type=names, default="lenet5,resnet50", help="separated by commas (default: %(default)s)"
    )
    parser.add_argument(
        "--connections", type=numbers, default="1,4,16,32", help="separated by commas (default: %(default)s)"
    )
    parser.add_argument("--rounds", type=int, default=5, help="over all servers in turn (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=10, help="of each run (default: %(default)s)")
    precision = parser.add_mutually_exclusive_group()
    precision.add_argument("--precision", default="fp32", help="default: %(default)s")
    precision.add_argument(
        "--as-installed",
        action="store_const",
        dest="precision",
        const=AS_INSTALLED,
        help="each server as its README has it, in the precision that it chooses",
    )
    parser.add_argument(
        "--rest",
        type=float,
        default=300,
        help="as installed: seconds after the first start, in which convserve may tune itself (default: %(default)s)",
    )
    parser.add_argument("--images", type=Path, default=FOLDER, help="folder of JPEGs (default: scikit-image's photos)")
    parser.add_argument(
        "--out", type=Path, default=RESULTS / "peers.jsonl", help="results; those there are kept (default: %(default)s)"
    )
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, end)
    comparison = PeerComparison(
        models=options.models,
        connections=options.connections,
        rounds=options.rounds,
        seconds=options.seconds,
        precision=options.precision,
        images=options.images,
        rest_s=options.rest,
    )
    print(compare(comparison, options.out))


def end(signum: int, frame: FrameType | None) -> None:
    """Raise SystemExit, so that a server that this command started is stopped on the way out."""
    sys.exit(128 + signum)
