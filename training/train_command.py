"""Commands that train: one architecture or several, and a comparison of ways to train one."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from models.names import near_names, suggestion
from models.zoo import ZOO

if TYPE_CHECKING:
    from training.data import DataSet
    from training.recipes import Recipe
    from training.setup import TrainingRun

RECIPES = ("quick", "paper", "modern", "tune")
DISTIL = 0.5  # weight of a teacher, unless --set distil=… states another
LOGS = ("csv", "tensorboard")


def add_recipe_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of data, recipe and trained weights, which all commands that train have."""
    parser.add_argument(
        "--data",
        default="mnist5k",
        metavar="NAME[:PATH]",
        help="mnist5k, mnist, fashion_mnist, cifar10, cifar100, imagenet, in data/NAME or PATH; folder:PATH, with a "
        "folder of pictures per class; csv:FILE, of paths and labels; or tar:PATH, with shards (default: %(default)s)",
    )
    parser.add_argument(
        "--recipe",
        choices=RECIPES,
        help="the paper's, or one for all networks (default: tune with --from, quick below 10,000 training images, "
        "else paper)",
    )
    parser.add_argument(
        "--from",
        dest="start",
        metavar="WEIGHTS",
        help="fine-tune: imagenet or another data set with published weights, a checkpoint's folder, a tag, or a file",
    )
    parser.add_argument(
        "--freeze",
        metavar="LAYERS",
        help="layers of --from that are never trained: none, stem, stage1 and so on; or head-only, all but the head",
    )
    parser.add_argument(
        "--teacher", metavar="MODEL", help="learn from the answers of a published model or a checkpoint as well"
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="set a value of the recipe, such as lr=0.05"
    )
    parser.add_argument("--epochs", type=int, help="shorten or lengthen the schedule to this many epochs")


def train_command(arguments: list[str]) -> None:
    """Train architectures, one after another."""
    parser = argparse.ArgumentParser("python -m training", description="Train architectures, one after another.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="architecture; `python -m models` lists them")
    parser.add_argument("--family", help="all architectures of a family")
    parser.add_argument("--all", action="store_true", help="all architectures")
    add_recipe_options(parser)
    parser.add_argument("--max-minutes", type=float, help="train each network for as many epochs as fit in this time")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--out", type=Path, help="folder of the checkpoint (default: checkpoints/NAME-DATA)")
    parser.add_argument("--resume", action="store_true", help="continue the checkpoint in the folder")
    parser.add_argument(
        "--compile", action="store_true", help="use torch.compile, which saves time in long trainings on a GPU"
    )
    parser.add_argument(
        "--log", action="append", default=[], choices=LOGS, help="write log.csv, or events for TensorBoard, as well"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="say memory, images/s, hours and disk of each network, and write nothing"
    )
    parser.add_argument(
        "--find-rate", action="store_true", help="try learning rates in a few steps, draw the losses, propose one"
    )
    parser.add_argument(
        "--results",
        type=Path,
        metavar="FILE",
        help="JSON lines: skip trainings that have a result in the file, append the results of the others",
    )
    options = parser.parse_args(arguments)
    names = selected_names(parser, options)
    check_recipe_options(parser, options)
    if options.max_minutes is not None and options.max_minutes <= 0:
        parser.error("--max-minutes must be more than 0")
    if options.results and options.results.suffix != ".jsonl":
        parser.error("--results is a .jsonl file; its table is written beside it, as .md")
    if options.out and len(names) > 1:
        parser.error("--out is of one architecture")

    from training import checkpoint, data, results
    from training.campaign import campaign
    from training.processes import joined
    from training.train import TrainingOptions

    with joined() as processes:
        data_set = processes.from_first(lambda: data.load(options.data))
        data_set.check_train()
        runs = [run_from(name, data_set, options) for name in names]
        if options.dry_run or options.find_rate:
            if processes.first:
                trial_command(runs, data_set, dry=options.dry_run)
            return
        training_options = TrainingOptions(
            resume=options.resume,
            max_minutes=options.max_minutes,
            compiled=options.compile,
            logs=tuple(options.log),
        )
        try:
            campaign(runs, data_set, processes, training_options, options.results)
        finally:
            if options.results and options.results.exists() and processes.first:
                results.write_table(options.results)
        out = runs[0].out
        if processes.first and len(runs) == 1 and (out / checkpoint.FILE).exists():
            print(f"now: python -m training publish {out}")


def compare_command(arguments: list[str]) -> None:
    """Train a network from scratch, frozen and tuned, or alone and taught, and print the table."""
    parser = argparse.ArgumentParser(
        "python -m training compare",
        description="Train one network in several ways on the same split: from scratch, with all but the head frozen, "
        "and tuned (--from); or alone and taught (--teacher). Print a table.",
    )
    parser.add_argument("name", metavar="NAME", help="architecture")
    add_recipe_options(parser)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="seeds to train (default: 0)")
    parser.add_argument("--out", type=Path, default=Path("checkpoints/compare"), help="default: %(default)s")
    options = parser.parse_args(arguments)
    check_names(parser, [options.name])
    check_recipe_options(parser, options)
    if not options.start and not options.teacher:
        parser.error("compare what? --from names weights to start from, --teacher a network to learn from")

    from training import compare, data
    from training.processes import joined

    with joined() as processes:
        data_set = processes.from_first(lambda: data.load(options.data))
        data_set.check_train()
        options.seed = options.seeds[0]
        run = run_from(options.name, data_set, options)
        runs = processes.from_first(lambda: compare.runs(run, data_set, options.seeds))  # may download weights
        table = compare.compare(runs, data_set, processes)
    if processes.first:
        print(f"\n{table}")


def check_recipe_options(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """End with an error if the options of a recipe cannot be together."""
    if options.epochs is not None and options.epochs < 1:
        parser.error("--epochs must be at least 1")
    if options.freeze and not options.start:
        parser.error("--freeze is of --from, whose weights are worth keeping")


def check_names(parser: argparse.ArgumentParser, names: Sequence[str]) -> None:
    """End with an error if a name is no architecture."""
    for name in names:
        if name not in ZOO:
            hint = suggestion(near_names(name, ZOO)) or "`python -m models` lists them"
            parser.error(f"no architecture {name!r}; {hint}")


def selected_names(parser: argparse.ArgumentParser, options: argparse.Namespace) -> list[str]:
    """Return the architectures that the command line selects, in the lecture's order."""
    check_names(parser, options.names)
    families = {card.family for card in ZOO.values()}
    if options.family and options.family not in families:
        parser.error(f"no family {options.family!r}; there are {', '.join(sorted(families))}")
    names = [
        name for name, card in ZOO.items() if options.all or name in options.names or card.family == options.family
    ]
    if not names:
        parser.error("which architecture? NAME, --family or --all")
    return names


def recipe_from(name: str, data: DataSet, options: argparse.Namespace) -> Recipe:
    """Return the recipe of an architecture and a data set, with the values that the command line sets."""
    from training.recipes import as_json, default_kind, override, recipe_of, shortened

    kind = options.recipe or ("tune" if options.start else default_kind(data))
    recipe = recipe_of(ZOO[name], data, kind)
    if options.epochs:
        recipe = shortened(recipe, options.epochs)
    values: dict[str, object] = {"distil": DISTIL} if options.teacher else {}
    if options.freeze:
        values["freeze"] = options.freeze
    for pair in options.set:
        key, _, value = pair.partition("=")
        values[key] = as_json(value)
    return override(recipe, values)


def run_from(name: str, data: DataSet, options: argparse.Namespace) -> TrainingRun:
    """Return the training of an architecture that the command line describes."""
    from training.setup import TrainingRun

    return TrainingRun(
        card=ZOO[name],
        recipe=recipe_from(name, data, options),
        seed=options.seed,
        out=options.out or Path("checkpoints") / f"{name}-{data.name}",
        start=options.start,
        teacher=options.teacher,
    )


def trial_command(runs: Sequence[TrainingRun], data: DataSet, *, dry: bool) -> None:
    """Print what each training would cost, or which learning rate it should have."""
    from training.dry_run import dry_run
    from training.find_rate import find_rate

    for run in runs:
        print(dry_run(run, data) if dry else find_rate(run, data), flush=True)
