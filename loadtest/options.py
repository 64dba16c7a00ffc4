"""Options that several commands of `python -m loadtest` share."""

from __future__ import annotations

import argparse
from pathlib import Path

HOST = "http://localhost:3000"
IMAGES = Path("images/mnist5k")


def server_parser(command: str, description: str | None) -> argparse.ArgumentParser:
    """Return a parser for `python -m loadtest COMMAND` with --host and --images."""
    parser = argparse.ArgumentParser(f"python -m loadtest {command}", description=description)
    parser.add_argument("--host", default=HOST, help="address of the server (default: %(default)s)")
    parser.add_argument("--images", type=Path, default=IMAGES, help="folder of images (default: %(default)s)")
    return parser


def add_models(parser: argparse.ArgumentParser, default: str = "lenet5", note: str = "") -> None:
    """Add --models, names that are separated by commas."""
    parser.add_argument(
        "--models", type=names, default=default, help=f"names, separated by commas{note} (default: %(default)s)"
    )


def names(text: str) -> list[str]:
    """Split `lenet5,vgg19` into its names."""
    return text.split(",")


def numbers(text: str) -> list[int]:
    """Parse `1,4,16`. Raises ValueError, which argparse reports, if a part is not a number of at least 1."""
    values = [int(part) for part in text.split(",")]
    if min(values) < 1:
        raise ValueError(text)
    return values
