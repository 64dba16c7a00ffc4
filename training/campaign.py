"""Trainings one after another, and the file of what they gave."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from models.card import Architecture
from training import results
from training.data import DataSet
from training.errors import TrainingError
from training.processes import Processes
from training.recipes import Recipe
from training.train import say, train


class TrainingRun(NamedTuple):
    """One training of a campaign; `out` is the folder of its checkpoint."""

    card: Architecture
    recipe: Recipe
    seed: int
    out: Path


def campaign(
    runs: Sequence[TrainingRun],
    data: DataSet,
    processes: Processes,
    *,
    resume: bool,
    file: Path | None = None,
    max_minutes: float | None = None,
    compiled: bool = False,
) -> None:
    """Train those of `runs` that `file` lacks, and add each to it.

    One that fails does not keep the others from theirs: TrainingError names it when all are done.
    """
    failed: list[str] = []
    for run in runs:
        name = f"{run.card.name} on {data.name}, seed {run.seed}"
        known = processes.from_first(partial(results.find, file, run.card.name, data.name, run.seed)) if file else None
        if known:
            say(processes, f"{file} has {name}: {known.top1:.1%}, by the recipe {known.recipe.source!r}")
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
        except TrainingError as error:
            if len(runs) == 1:
                raise
            failed.append(name)
            say(processes, f"{name}: {error}")
            continue
        if file and processes.first:
            results.add(file, run.card, saved, len(data.held_out))
    if failed:
        raise TrainingError(f"not trained, for what is said above: {'; '.join(failed)}")
