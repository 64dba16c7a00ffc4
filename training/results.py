"""Results of trainings as JSON lines, and their table in Markdown."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import torch

from engines import markdown
from engines.published import files
from engines.published.manifest import Record
from engines.runtimes.machine import processor
from models.card import Architecture
from models.complexity import complexity
from models.zoo import ZOO
from training import jsonl
from training.checkpoint import Checkpoint
from training.machine import machine_errors
from training.recipes import Recipe, shortened
from training.significance import wilson


class TrainingResult(Record):
    """Result of one training.

    `losses` and `top1s` (0 to 1) have a value per epoch; `top1`, with its 95 % Wilson interval, is the last epoch's.
    `macs` are at `input_shape`, (channels, height, width), the size that the network was trained on. `machine` is the
    name of the GPU or processor; older results lack the name. `start` and `teacher` are the names that the command line
    had for the weights to start from and for a teacher.
    """

    architecture: str
    dataset: str
    seed: int
    top1: float
    top1_low: float
    top1_high: float
    held_out: int
    params: int
    macs: int
    input_shape: tuple[int, int, int]
    epochs: int
    minutes: float
    losses: tuple[float, ...]
    top1s: tuple[float, ...]
    weights_sha256: str
    recipe: Recipe
    versions: dict[str, str]
    device: str
    threads: int
    machine: str | None = None
    start: str | None = None
    teacher: str | None = None

    @property
    def trained_on(self) -> str:
        """Name of the machine, or what else is known."""
        return self.machine or f"{self.device}, {self.threads} thread{'s' * (self.threads > 1)}"


def read(path: Path) -> list[TrainingResult]:
    """Return all results of the file; none if the file does not exist."""
    return jsonl.read(path, TrainingResult)


def find(
    path: Path, architecture: str, dataset: str, seed: int, start: str | None = None, teacher: str | None = None
) -> TrainingResult | None:
    """Return the result of one training, or None if the file has none."""
    wanted = (architecture, dataset, seed, start, teacher)
    matching = (
        row for row in read(path) if (row.architecture, row.dataset, row.seed, row.start, row.teacher) == wanted
    )
    return next(matching, None)


def other_values(known: TrainingResult, recipe: Recipe) -> list[str]:
    """Return the values of a recipe that a known result has otherwise; those that follow from fewer epochs may differ.

    `--max-minutes` trains fewer.
    """
    shorter = shortened(recipe, known.recipe.epochs)
    return [
        f"{field.name} {had!r}, not {wanted!r}"
        for field in fields(recipe)
        if (had := getattr(known.recipe, field.name)) != (wanted := getattr(recipe, field.name))
        and wanted == getattr(shorter, field.name)
    ]


def result_of(card: Architecture, saved: Checkpoint, held_out: int) -> TrainingResult:
    """Return the result of a finished training, whose top-1 was measured on `held_out` images."""
    assert saved.recipe
    assert saved.seed is not None
    height, width, channels = saved.input.preprocess.shape
    cost = complexity(card, (channels, height, width), len(saved.labels))
    last = saved.epochs[-1]
    low, high = wilson(round(last.top1 * held_out), held_out)
    return TrainingResult(
        architecture=saved.architecture,
        dataset=saved.dataset,
        seed=saved.seed,
        top1=last.top1,
        top1_low=round(low, 4),
        top1_high=round(high, 4),
        held_out=held_out,
        params=cost.params,
        macs=cost.macs,
        input_shape=(channels, height, width),
        epochs=len(saved.epochs),
        minutes=round(sum(epoch.seconds for epoch in saved.epochs) / 60, 2),
        losses=tuple(round(epoch.loss, 4) for epoch in saved.epochs),
        top1s=tuple(round(epoch.top1, 4) for epoch in saved.epochs),
        weights_sha256=saved.weights.sha256,
        recipe=saved.recipe,
        versions=saved.versions,
        device="cuda" if torch.cuda.is_available() else "cpu",
        threads=torch.get_num_threads(),
        machine=torch.cuda.get_device_name() if torch.cuda.is_available() else processor(),
        start=saved.start.spec if saved.start else None,
        teacher=saved.teacher.spec if saved.teacher else None,
    )


def add(path: Path, card: Architecture, saved: Checkpoint, held_out: int) -> None:
    """Append the result of a finished training to the file."""
    jsonl.append(path, result_of(card, saved, held_out))


def write_table(path: Path) -> None:
    """Write the table of the results in `path` beside the file, with the suffix `.md`."""
    page = path.with_suffix(".md")
    with machine_errors(page):
        files.write(page, table(read(path), path.name))


def name_of(row: TrainingResult) -> str:
    """Return the network of a result in Markdown, with the weights that it started from, and its teacher."""
    start = f" from {row.start}" if row.start else ""
    return f"`{row.architecture}`{start}{f', taught by {row.teacher}' if row.teacher else ''}"


def table(results: list[TrainingResult], source: str) -> str:
    """Return all results as a Markdown page that links the file `source`; rows are in the lecture's order."""
    order = {name: index for index, name in enumerate(ZOO)}
    rows = sorted(results, key=lambda result: (result.dataset, order[result.architecture], result.seed))
    introduction = [
        "# Results of training",
        "",
        f"Generated from [{source}]({source}), which has the whole recipe of each line, its versions and "
        "commit. Top-1 is of the held-out images after the last epoch, with the 95 % Wilson interval; MACs are at "
        "the trained size; the loss is the mean over the first epoch and over the last.",
        "",
        "How it was made, and how to make it again: [training.md](training.md#results).",
        "",
    ]
    head = (
        "model",
        "data",
        "input",
        "parameters",
        "MACs",
        "top-1",
        "95 %",
        "epochs",
        "minutes",
        "loss",
        "seed",
        "machine",
    )
    cells = [
        (
            *(name_of(row), row.dataset, "x".join(map(str, row.input_shape)), f"{row.params:,}"),
            *(f"{row.macs:,}", f"{row.top1:.1%}", f"{row.top1_low:.1%} to {row.top1_high:.1%}", str(row.epochs)),
            *(f"{row.minutes:.1f}", f"{row.losses[0]:.3f} to {row.losses[-1]:.3f}", str(row.seed)),
            row.trained_on,
        )
        for row in rows
    ]
    return "\n".join([*introduction, markdown.table(head, cells, right=(3, 4, 5, 7, 8, 10))]) + "\n"
