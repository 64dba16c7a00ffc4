"""`python -m loadtest compare` measures models one after another and draws accuracy against compute."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import locust  # noqa: F401 (first of all: it patches sockets and ssl for gevent)

from loadtest.compare import Load, compare, table
from loadtest.plot import accuracy_against_compute
from loadtest.traffic import ScenarioError


def main() -> None:
    """Run the one command."""
    parser = argparse.ArgumentParser("python -m loadtest", description=__doc__)
    parser.add_argument("command", choices=["compare"])
    parser.add_argument("--host", default="http://localhost:3000", help="default: %(default)s")
    parser.add_argument("--models", default="lenet5,resnet20_cifar,senet154", help="default: %(default)s")
    parser.add_argument("--images", type=Path, default=Path("images/mnist5k"), help="default: %(default)s")
    parser.add_argument("--users", type=int, default=8, help="requests in flight (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="of all models in turn (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=10, help="a model in a round (default: %(default)s)")
    parser.add_argument("--picture", type=Path, default=Path("compare.png"), help="PNG (default: %(default)s)")
    options = parser.parse_args()
    load = Load(users=options.users, rounds=options.rounds, seconds=options.seconds)
    try:
        rows = compare(options.host, options.models.split(","), options.images, load)
    except ScenarioError as error:
        sys.exit(f"error: {error}")
    print(f"{table(rows)}\n\n{load}; server: {options.host}")
    accuracy_against_compute(rows, load, options.picture)
    print(f"wrote {options.picture}")


if __name__ == "__main__":
    main()
