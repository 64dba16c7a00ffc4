"""Comparison of ways to train one network on one split: from scratch, frozen and tuned, or alone and taught."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import mean

from engines import markdown
from training.checkpoint import Checkpoint
from training.data import DataSet
from training.input import input_of
from training.known_weights import known_weights
from training.machine import machine_errors
from training.processes import Processes
from training.recipes import HEAD_ONLY, Recipe, default_kind, recipe_of, shortened
from training.setup import TrainingRun
from training.significance import wilson
from training.train import TrainingOptions, say, train

SCRATCH, FROZEN, TUNED = "from scratch", "head only", "tuned"
ALONE, TAUGHT = "alone", "taught"
Runs = Mapping[str, Sequence[TrainingRun]]  # by way, one for each seed


def runs(run: TrainingRun, data: DataSet, seeds: Sequence[int]) -> Runs:
    """Return the trainings to compare with `run`, which starts from trained weights or has a teacher.

    A training from scratch has the recipe of the data's size, with the epochs and the input of `run`; each way has a
    folder of its own in `run.out`, whose name is that of the default checkpoint.
    """
    ways: dict[str, TrainingRun] = {}
    if run.start:
        ways[SCRATCH] = run._replace(start=None, teacher=None, recipe=from_scratch(run, data))
        ways[FROZEN] = run._replace(recipe=replace(run.recipe, freeze=HEAD_ONLY))
        ways[TUNED] = run
    else:
        ways[ALONE] = run._replace(teacher=None, recipe=replace(run.recipe, distil=0))
        ways[TAUGHT] = run
    return {
        way: [
            each._replace(seed=seed, out=run.out / f"{run.card.name}-{data.name}-{way.replace(' ', '_')}-{seed}")
            for seed in seeds
        ]
        for way, each in ways.items()
    }


def from_scratch(run: TrainingRun, data: DataSet) -> Recipe:
    """Return the recipe of a training from random weights at the size that `run` has."""
    recipe = shortened(recipe_of(run.card, data, default_kind(data)), run.recipe.epochs)
    assert run.start
    trained = known_weights(run.start, run.card.name).input
    return replace(recipe, edge=input_of(run.card, run.recipe, data, trained).preprocess.shape[0])


def compare(ways: Runs, data: DataSet, processes: Processes) -> str:
    """Train what has no finished checkpoint yet, and return the table."""
    trained: dict[str, list[Checkpoint]] = {}
    for way, of_seeds in ways.items():
        for run in of_seeds:
            say(processes, f"{way}, seed {run.seed}:")
            with machine_errors():
                trained.setdefault(way, []).append(train(run, data, processes, TrainingOptions(resume=True)))
    return table(trained, len(data.held_out))


def table(trained: Mapping[str, Sequence[Checkpoint]], held_out: int) -> str:
    """Return a Markdown table with a row for each way: mean top-1 with its 95 % Wilson interval, and that of each seed.

    The interval says how far other pictures may differ from the held-out ones; seeds do not make it narrower.
    """
    rows = []
    for way, saved in trained.items():
        top1s = [each.epochs[-1].top1 for each in saved]
        low, high = wilson(round(mean(top1s) * held_out), held_out)
        minutes = mean(sum(epoch.seconds for epoch in each.epochs) / 60 for each in saved)
        rows.append(
            (
                *(way, f"{mean(len(each.epochs) for each in saved):.0f}", f"{minutes:.1f}"),
                *(f"{mean(top1s):.1%}", f"{low:.1%} to {high:.1%}", ", ".join(f"{top1:.1%}" for top1 in top1s)),
            )
        )
    head = "way", "epochs", "minutes", "top-1", "95 %", "each seed"
    return markdown.table(head, rows, right=(1, 2, 3)) + "\n"
