"""`python -m training NAME` trains, `publish CHECKPOINT` publishes, `images DATA` writes held-out pictures."""

from __future__ import annotations

import argparse
import signal
import sys
from dataclasses import replace
from pathlib import Path

from engines.engine import EngineError
from engines.manifest import ManifestError
from training.checkpoint import CheckpointError
from training.recipe import RECIPES


def train_command(arguments: list[str]) -> None:
    """Train one architecture."""
    parser = argparse.ArgumentParser("python -m training", description="Train an architecture.")
    parser.add_argument("name", help="architecture to train; or one of the commands `publish` and `images`")
    parser.add_argument("--data", default="mnist5k", choices=RECIPES, help="data set (default: %(default)s)")
    parser.add_argument("--epochs", type=int, help="default: the recipe's")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--out", type=Path, help="folder of the checkpoint (default: checkpoints/NAME-DATA)")
    parser.add_argument("--resume", action="store_true", help="go on with the checkpoint that is there")
    options = parser.parse_args(arguments)
    recipes = RECIPES[options.data]
    if options.name not in recipes:
        parser.error(f"no recipe for {options.name!r} on {options.data}; there are {', '.join(recipes)}")
    if options.epochs is not None and options.epochs < 1:
        parser.error("--epochs must be at least 1")
    recipe = recipes[options.name]

    from training.data import DATASETS
    from training.train import train

    train(
        options.name,
        DATASETS[options.data](),
        replace(recipe, epochs=options.epochs or recipe.epochs),
        options.out or Path("checkpoints") / f"{options.name}-{options.data}",
        seed=options.seed,
        resume=options.resume,
    )


def publish_command(arguments: list[str]) -> None:
    """Publish one checkpoint."""
    parser = argparse.ArgumentParser("python -m training publish", description="Publish a checkpoint for serving.")
    parser.add_argument("checkpoint", type=Path, help="folder of the checkpoint")
    options = parser.parse_args(arguments)

    from training.publish import publish

    publish(options.checkpoint)


def images_command(arguments: list[str]) -> None:
    """Write a data set's held-out pictures, for load tests."""
    parser = argparse.ArgumentParser("python -m training images", description="Write held-out pictures as PNG files.")
    parser.add_argument("data", choices=RECIPES, help="data set")
    parser.add_argument("--out", type=Path, help="folder to make, a sub-folder a label (default: images/DATA)")
    options = parser.parse_args(arguments)
    folder = options.out or Path("images") / options.data
    if folder.exists():
        parser.error(f"{folder} exists already")

    from training.data import DATASETS, write_images

    write_images(DATASETS[options.data](), folder)


COMMANDS = {"publish": publish_command, "images": images_command}


def main(arguments: list[str]) -> None:
    """Run one command; what the user can mend is a line and exit status 1."""
    try:
        if arguments and arguments[0] in COMMANDS:
            COMMANDS[arguments[0]](arguments[1:])
        else:
            train_command(arguments)
    except (CheckpointError, EngineError, ManifestError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        hint = "" if arguments[0] in COMMANDS else "; --resume goes on from the last whole epoch"
        print(f"\nstopped{hint}", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)


main(sys.argv[1:])
