"""Schedule of a training: its phases, the learning rate at any time, and an early end."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from training.recipes import HEAD_ONLY, Recipe


class Phase(NamedTuple):
    """Phase of a training: its epochs are `start` + 1 to `end`, its own `recipe` counts them from 1.

    `head_only`: all layers but the head are frozen.
    """

    start: int
    end: int
    recipe: Recipe
    head_only: bool


def phases(recipe: Recipe) -> tuple[Phase, ...]:
    """Return the phases: that of the head alone, if there is one, and that of all layers at `body` times the rate."""
    if recipe.freeze == HEAD_ONLY:
        return (Phase(0, recipe.epochs, recipe, head_only=True),)
    first, rest = recipe.head_epochs, recipe.epochs - recipe.head_epochs
    of_all = Phase(first, recipe.epochs, replace(recipe, epochs=rest, lr=recipe.lr * recipe.body), head_only=False)
    return (Phase(0, first, replace(recipe, epochs=first), head_only=True), of_all) if first else (of_all,)


def finished(recipe: Recipe, top1s: Sequence[float]) -> bool:
    """Return True after the last epoch, or after `stop_after` epochs of the last phase without a new best top-1."""
    return len(top1s) == recipe.epochs or stopped(recipe, top1s)


def stopped(recipe: Recipe, top1s: Sequence[float]) -> bool:
    """Return True if a training has ended before its last epoch, by the top-1 of its epochs so far."""
    in_phase = top1s[phases(recipe)[-1].start :]
    return bool(recipe.stop_after and len(top1s) < recipe.epochs and plateaus(in_phase, recipe.stop_after))


def learning_rate(recipe: Recipe, epoch: float, top1s: Sequence[float] = ()) -> float:
    """Return the learning rate at a time in epochs, which may be fractional, of a phase.

    `top1s` holds the held-out top-1 of each earlier epoch; only the schedule "plateau" uses them.
    """
    if epoch <= recipe.warmup_epochs:
        return recipe.lr * epoch / recipe.warmup_epochs
    progress = (epoch - recipe.warmup_epochs) / (recipe.epochs - recipe.warmup_epochs)
    match recipe.schedule:
        case "cosine":
            return recipe.lr * (1 + math.cos(math.pi * progress)) / 2
        case "steps":
            return recipe.lr * float(recipe.factor ** sum(epoch > drop * recipe.epochs for drop in recipe.drops))
        case "exponential":
            return recipe.lr * float(recipe.factor ** (epoch - recipe.warmup_epochs))
        case "plateau":
            return recipe.lr * float(recipe.factor ** min(recipe.falls, plateaus(top1s, recipe.patience)))


def plateaus(top1s: Sequence[float], patience: int) -> int:
    """Count the plateaus: runs of `patience` epochs without a new best top-1."""
    count, best, since_best = 0, -1.0, 0
    for top1 in top1s:
        best, since_best = (top1, 0) if top1 > best else (best, since_best + 1)
        if since_best == patience:
            count, since_best = count + 1, 0
    return count
