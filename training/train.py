"""Training of one network: resume, time budget, checkpoint, log and curves."""

from __future__ import annotations

import copy
import time
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch import nn

from engines.published import files
from engines.published.manifest import Accuracy
from training import checkpoint
from training.checkpoint import Checkpoint, Epoch, Origin
from training.data import DataSet
from training.errors import CheckpointError
from training.logs import Logs
from training.machine import check_room, check_writable, machine_errors
from training.plot import curves
from training.processes import Processes
from training.recipes import Recipe, shortened
from training.schedule import Phase, finished, phases, stopped
from training.setup import Training, TrainingRun, set_up
from training.significance import warnings
from training.trainer import Trainer

__all__ = ["CURVES", "DEFAULT_OPTIONS", "LOG", "TrainingOptions", "TrainingRun", "say", "train"]

LOG = "log.jsonl"
CURVES = "curves.png"


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """Options of a training: continue its checkpoint, a budget in minutes, torch.compile, further logs by kind.

    With `max_minutes`, as many of the recipe's epochs are trained as fit, at least one; the schedule is shortened. A
    resumed training keeps its checkpoint's number of epochs.
    """

    resume: bool = False
    max_minutes: float | None = None
    compiled: bool = False
    logs: tuple[str, ...] = ()


DEFAULT_OPTIONS = TrainingOptions()


def train(
    run: TrainingRun, data: DataSet, processes: Processes, options: TrainingOptions = DEFAULT_OPTIONS
) -> Checkpoint:
    """Train a network and return its checkpoint, which is saved in `run.out` after every epoch.

    A resumed training ends as if it had never stopped: every random draw of an epoch depends only on the seed and the
    number of the epoch. Raises CheckpointError if `run.out` holds another run, or any run without `options.resume`, or
    if weights to start from or a teacher are missing; DivergedError if the loss becomes NaN or infinite; RecipeError if
    the recipe does not fit network or processes; MachineError if disk, memory or rights do not suffice.
    """
    out = run.out
    latest = checkpoint.load(out) if (out / checkpoint.FILE).exists() else None
    if latest and not options.resume:
        raise CheckpointError(f"{out} holds a checkpoint: --resume goes on with it, --out names another folder")
    training = set_up(run, data, processes, latest)
    processes.from_first(partial(check_disk, out, training.net, run.recipe))
    if options.max_minutes:
        known = latest.recipe.epochs if latest and latest.recipe else None
        shorten(training, known or epochs_that_fit(options.max_minutes, training))
    if latest:
        check_same_run(latest, training.fields, out)
        checkpoint.restore(out, latest, training.net)
    with closing(Logs(out, options.logs if processes.first else (), training.epochs)) as logs:
        if latest and latest.done:
            write_log_and_curves(training)
            say(processes, f"{out} has all its {len(latest.epochs)} epochs")
            return latest
        say(processes, introduction(training))
        for phase in phases(training.recipe):
            if len(training.epochs) < phase.end:
                train_phase(training, phase, latest, logs, compiled=options.compiled)
    with machine_errors(out, "the training is whole; --resume writes its log and curves"):
        write_log_and_curves(training)
    if stopped(training.recipe, training.top1s):
        say(processes, f"ended early: no better top-1 in {training.recipe.stop_after} epochs")
    accuracy = Accuracy(top1=training.top1s[-1], images=len(data.held_out))
    for warning in warnings(accuracy, data.held_out.targets):
        say(processes, f"WARNING: {warning}")
    return checkpoint.load(out)


def shorten(training: Training, epochs: int) -> None:
    """Compress the schedule of a training to `epochs` epochs."""
    training.recipe = shortened(training.recipe, epochs)
    training.fields["recipe"] = training.recipe


def train_phase(training: Training, phase: Phase, latest: Checkpoint | None, logs: Logs, *, compiled: bool) -> None:
    """Train the epochs of a phase that are left, and save each; the next phase starts from the weights as saved."""
    run, epochs, processes = training.run, training.epochs, training.processes
    trainer = training.trainer(phase, compiled=compiled)
    if latest and len(epochs) > phase.start:
        checkpoint.restore_optimizer(run.out, latest, trainer.optimizer, trainer.scaler, trainer.net)
    while len(epochs) < phase.end and not finished(training.recipe, training.top1s):
        with machine_errors(run.out, "--resume goes on from the last whole epoch" if epochs else ""):
            epochs.append(trainer.train_epoch(len(epochs) + 1, training.top1s[phase.start :]))
            if processes.first:
                save(training, trainer, phase)
                write_log(run.out, epochs)
                logs.add(epochs)
            say(processes, describe(run.card.name, epochs, training.recipe))
            processes.wait()
    trainer.net.load_state_dict(trainer.measured.state_dict())


def save(training: Training, trainer: Trainer, phase: Phase) -> None:
    """Save the checkpoint of a training; with the state of a phase that has epochs left."""
    done = finished(training.recipe, training.top1s) or len(training.epochs) == phase.end
    fields = {**training.fields, "epochs": training.epochs}
    unfinished = None if done else (trainer.optimizer, trainer.scaler)
    raw = trainer.net if trainer.average else None
    checkpoint.save(training.run.out, fields, trainer.measured, unfinished, raw)


def write_log_and_curves(training: Training) -> None:
    """Write the log and the curves of a finished training, in the first process."""
    run, epochs = training.run, training.epochs
    if training.processes.first:
        write_log(run.out, epochs)
        curves(f"{run.card.name} on {training.data_set.name}, seed {run.seed}", epochs, run.out / CURVES)


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


def epochs_that_fit(max_minutes: float, training: Training) -> int:
    """Return how many of the recipe's epochs fit into `max_minutes`, at least one; the same in all processes.

    The first process times a copy of the network, alone, so that the network keeps its weights. Steps of the last
    phase, held-out images and saving are timed, and the timing itself counts.
    """
    processes, phase = training.processes, phases(training.recipe)[-1]
    training.prepare()  # loading the data is not part of the time

    def fitting() -> int:
        started = time.perf_counter()
        trainer = training.trainer(phase, copy.deepcopy(training.net), Processes(0, 1, processes.device))
        seconds = trainer.epoch_seconds()
        state = trainer.optimizer, trainer.scaler
        raw = trainer.net if trainer.average else None
        seconds += checkpoint.saving_seconds(training.run.out, trainer.measured, state, raw)
        epochs = int((60 * max_minutes - (time.perf_counter() - started)) / seconds)
        if epochs < 1:
            print(f"one epoch takes about {seconds / 60:.1f} minutes: one is trained, beyond --max-minutes", flush=True)
        return max(1, min(training.recipe.epochs, epochs))

    return processes.from_first(fitting)


def say(processes: Processes, line: str) -> None:
    """Print a line in the first process only."""
    if processes.first:
        print(line, flush=True)


def introduction(training: Training) -> str:
    """Return the line to print before the first epoch: images, classes, the recipe, and weights of others."""
    name, data, recipe, fields = training.run.card.name, training.data_set, training.recipe, training.fields
    line = (
        f"{name} on {data.name}: {len(data.train):,} images to train, {len(data.held_out):,} held out, "
        f"{len(data.labels)} classes; batch {recipe.batch}, {recipe.epochs} epochs; recipe: {recipe.source}"
    )
    for origin, words in ((fields["start"], "starts from"), (fields["teacher"], "is taught by")):
        line += f"; {words} {origin.title}" if isinstance(origin, Origin) else ""
    return line


def describe(name: str, epochs: list[Epoch], recipe: Recipe) -> str:
    """Return the line to print after an epoch: loss, top-1, speed, and expected minutes left."""
    last = epochs[-1]
    minutes_left = sum(epoch.seconds for epoch in epochs) / len(epochs) * (recipe.epochs - last.epoch) / 60
    return (
        f"{name} epoch {last.epoch}/{recipe.epochs}: loss {last.loss:.4f}, held-out top-1 {last.top1:.2%},"
        f" {last.images_per_s:.0f} images/s, {minutes_left:.1f} minutes left"
    )


def check_same_run(latest: Checkpoint, fields: dict[str, object], out: Path) -> None:
    """Raise CheckpointError unless the checkpoint `latest` agrees with `fields`."""
    different = [key for key, value in fields.items() if getattr(latest, key) != value]
    if different:
        raise CheckpointError(
            f"{out} holds a run with another {', '.join(different)}: repeat the options that it was started with "
            "(--from, --teacher, --max-minutes, --epochs, --set, --seed), or name another folder with --out"
        )
