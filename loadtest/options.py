"""Options that several commands of `python -m loadtest` share."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from loadtest.server import API_KEY, API_KEY_HELP, Server, server_of

HOST = "http://localhost:3000"
IMAGES = Path("images/mnist5k")
RESULTS = Path("results")  # folder of files that commands write, unless another is named


def server_parser(command: str, description: str | None) -> argparse.ArgumentParser:
    """Return a parser for `python -m loadtest COMMAND` with --host, --api-key and --images."""
    parser = argparse.ArgumentParser(f"python -m loadtest {command}", description=description)
    parser.add_argument("--host", default=HOST, help="address of the server (default: %(default)s)")
    parser.add_argument("--api-key", default=os.environ.get(API_KEY), help=API_KEY_HELP)
    parser.add_argument("--images", type=Path, default=IMAGES, help="folder of images (default: %(default)s)")
    return parser


def server_under_test(options: argparse.Namespace) -> Server:
    """Return the server that --host and --api-key name. Raises ScenarioError if there can be no such server."""
    return server_of(options.host, options.api_key)


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
