"""Training of one network: resume, time budget, checkpoint, log and curves."""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from engines.published import files
from engines.published.manifest import Accuracy
from models.card import Architecture
from training import checkpoint
from training.checkpoint import Checkpoint, Epoch
from training.data import DataSet
from training.errors import CheckpointError, RecipeError
from training.input import input_of
from training.machine import check_room, check_writable, machine_errors
from training.plot import curves
from training.processes import Processes
from training.recipes import Recipe, shortened
from training.significance import warnings
from training.trainer import PreparedData, Trainer, check_trains_on_one, make_net

LOG = "log.jsonl"
CURVES = "curves.png"


class TrainingRun(NamedTuple):
    """Training of one network; `out` is the folder of its checkpoint."""

    card: Architecture
    recipe: Recipe
    seed: int
    out: Path


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """Options of a training: continue its checkpoint, a budget in minutes, torch.compile.

    With `max_minutes`, as many of the recipe's epochs are trained as fit, at least one; the schedule is shortened. A
    resumed training keeps its checkpoint's number of epochs.
    """

    resume: bool = False
    max_minutes: float | None = None
    compiled: bool = False


DEFAULT_OPTIONS = TrainingOptions()


def train(
    run: TrainingRun, data: DataSet, processes: Processes, options: TrainingOptions = DEFAULT_OPTIONS
) -> Checkpoint:
    """Train a network and return its checkpoint, which is saved in `run.out` after every epoch.

    A resumed training ends as if it had never stopped: every random draw of an epoch depends only on the seed and the
    number of the epoch. Raises CheckpointError if `run.out` holds another run, or any run without `options.resume`;
    DivergedError if the loss becomes NaN or infinite; RecipeError if the recipe does not fit network or processes;
    MachineError if disk, memory or rights do not suffice.
    """
    card, recipe, seed, out = run
    batch = min(recipe.batch, len(data.train))
    if batch < processes.size:
        raise RecipeError(f"a batch of {batch} cannot be shared by {processes.size} processes: --set batch=…")
    torch.manual_seed(seed)
    network_input = input_of(card, recipe, data)
    net = make_net(card, len(data.labels), recipe)
    if batch < 2 * processes.size:
        check_trains_on_one(card, network_input)
    processes.from_first(partial(check_disk, out, net, recipe))
    prepared = PreparedData(data, recipe, network_input, seed, processes)
    latest = checkpoint.load(out) if (out / checkpoint.FILE).exists() else None
    if options.max_minutes:
        known = latest.recipe.epochs if latest and latest.recipe else None
        recipe = shortened(recipe, known or epochs_that_fit(options.max_minutes, run, net, prepared, processes))
    title = f"{card.name} on {data.name}, seed {seed}"
    fields = {
        "architecture": card.name,
        "dataset": data.name,
        "data": data.spec,
        "split": data.split,
        "labels": data.labels,
        "input": network_input,
        "recipe": recipe,
        "seed": seed,
    }
    epochs: list[Epoch] = []
    if latest:
        check_same_run(latest, fields, out, resume=options.resume)
        epochs = list(latest.epochs)
        if latest.done:
            write_log_and_curves(out, title, epochs, processes)
            say(processes, f"{out} has all its {recipe.epochs} epochs")
            return latest
    trainer = Trainer(net, recipe, prepared, processes)
    if latest:
        checkpoint.restore(out, latest, net)
        checkpoint.restore_optimizer(out, latest, trainer.optimizer, trainer.scaler)
    say(processes, introduction(run.card, data, recipe))
    if options.compiled:
        trainer.model = torch.compile(trainer.model)

    for number in range(len(epochs) + 1, recipe.epochs + 1):
        with machine_errors(out, "--resume goes on from the last whole epoch" if number > 1 else ""):
            epochs.append(trainer.train_epoch(number, [epoch.top1 for epoch in epochs]))
            unfinished = (trainer.optimizer, trainer.scaler) if number < recipe.epochs else None
            if processes.first:
                checkpoint.save(out, {**fields, "epochs": epochs}, net, unfinished)
                write_log(out, epochs)
            say(processes, describe(card.name, epochs, recipe))
            processes.wait()
    with machine_errors(out, "the training is whole; --resume writes its log and curves"):
        write_log_and_curves(out, title, epochs, processes)
    for warning in warnings(Accuracy(top1=epochs[-1].top1, images=len(data.held_out)), data.held_out.targets):
        say(processes, f"WARNING: {warning}")
    return checkpoint.load(out)


def write_log_and_curves(out: Path, title: str, epochs: list[Epoch], processes: Processes) -> None:
    """Write the log and the curves of a finished training, in the first process."""
    if processes.first:
        write_log(out, epochs)
        curves(title, epochs, out / CURVES)


def write_log(out: Path, epochs: list[Epoch]) -> None:
    """Write the epochs as JSON lines, replacing the log."""
    files.write(out / LOG, *(epoch.model_dump_json() + "\n" for epoch in epochs))


def check_disk(out: Path, net: nn.Module, recipe: Recipe) -> None:
    """Raise MachineError if the checkpoints of a training cannot be written in `out`, or need more than is free."""
    other = "--out names another folder"
    check_writable(out, other)
    present = sum(path.stat().st_size for path in out.glob("*.safetensors"))
    with machine_errors(other=other):
        check_room(out, checkpoint.room(net, recipe) - present)


def epochs_that_fit(
    max_minutes: float, run: TrainingRun, net: nn.Module, data: PreparedData, processes: Processes
) -> int:
    """Return how many of the recipe's epochs fit into `max_minutes`, at least one; the same in all processes.

    The first process times a copy of the network, alone, so that `net` keeps its weights. Steps, held-out images and
    saving are timed, and the timing itself counts.
    """

    def fitting() -> int:
        started = time.perf_counter()
        trainer = Trainer(copy.deepcopy(net), run.recipe, data, Processes(0, 1, processes.device))
        seconds = trainer.epoch_seconds()
        seconds += checkpoint.saving_seconds(run.out, trainer.net, (trainer.optimizer, trainer.scaler))
        epochs = int((60 * max_minutes - (time.perf_counter() - started)) / seconds)
        if epochs < 1:
            print(f"one epoch takes about {seconds / 60:.1f} minutes: one is trained, beyond --max-minutes", flush=True)
        return max(1, min(run.recipe.epochs, epochs))

    return processes.from_first(fitting)


def say(processes: Processes, line: str) -> None:
    """Print a line in the first process only."""
    if processes.first:
        print(line, flush=True)


def introduction(card: Architecture, data: DataSet, recipe: Recipe) -> str:
    """Return the line to print before the first epoch: images, classes, and the recipe."""
    return (
        f"{card.name} on {data.name}: {len(data.train):,} images to train, {len(data.held_out):,} held out, "
        f"{len(data.labels)} classes; batch {recipe.batch}, {recipe.epochs} epochs; recipe: {recipe.source}"
    )


def describe(name: str, epochs: list[Epoch], recipe: Recipe) -> str:
    """Return the line to print after an epoch: loss, top-1, speed, and expected minutes left."""
    last = epochs[-1]
    minutes_left = sum(epoch.seconds for epoch in epochs) / len(epochs) * (recipe.epochs - last.epoch) / 60
    return (
        f"{name} epoch {last.epoch}/{recipe.epochs}: loss {last.loss:.4f}, held-out top-1 {last.top1:.2%},"
        f" {last.images_per_s:.0f} images/s, {minutes_left:.1f} minutes left"
    )


def check_same_run(latest: Checkpoint, fields: dict[str, object], out: Path, *, resume: bool) -> None:
    """Raise CheckpointError unless the checkpoint `latest` may be continued and agrees with `fields`."""
    if not resume:
        raise CheckpointError(f"{out} holds a checkpoint: --resume goes on with it, --out names another folder")
    different = [key for key, value in fields.items() if getattr(latest, key) != value]
    if different:
        raise CheckpointError(
            f"{out} holds a run with another {', '.join(different)}: repeat the options that it was started with "
            "(--max-minutes, --epochs, --set, --seed), or name another folder with --out"
        )
