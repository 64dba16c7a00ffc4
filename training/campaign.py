"""Trainings one after another, and the file of what they gave."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from models.card import Architecture
from training import results
from training.data import DataSet
from training.errors import DivergedError
from training.processes import Processes
from training.recipe import Recipe
from training.train import say, train


class Run(NamedTuple):
    """One training of a campaign; `out` is the folder of its checkpoint."""

    card: Architecture
    recipe: Recipe
    seed: int
    out: Path


def campaign(
    runs: Iterable[Run],
    data: DataSet,
    processes: Processes,
    *,
    resume: bool,
    file: Path | None = None,
    max_minutes: float | None = None,
    compiled: bool = False,
) -> None:
    """Train those of `runs` that `file` lacks, and add each to it.

    One that diverges does not keep the others from theirs: DivergedError names it when all are done.
    """
    diverged: list[str] = []
    for run in runs:
        if file and results.has(file, run.card.name, data.name, run.seed):
            say(processes, f"{file} has {run.card.name} on {data.name}, seed {run.seed}")
            continue
        try:
            saved = train(
                *(run.card, data, run.recipe, run.out),
                seed=run.seed,
                resume=resume,
                processes=processes,
                max_minutes=max_minutes,
                compiled=compiled,
            )
        except DivergedError as error:
            diverged.append(f"{run.card.name}: {error}")
            say(processes, diverged[-1])
            continue
        if file and processes.first:
            results.add(file, run.card, saved, len(data.held_out))
    if diverged:
        raise DivergedError("\n".join(diverged))
