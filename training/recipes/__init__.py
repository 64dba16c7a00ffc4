"""Recipes: how each architecture is trained, by its paper, quickly, or by one modern recipe for all."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from models.card import Architecture
from training.data import DataSet
from training.recipes.modern import modern
from training.recipes.papers import PAPERS
from training.recipes.quick import quick
from training.recipes.recipe import HEAD_ONLY, Recipe, as_json, override, shortened
from training.recipes.small_data import for_few_images
from training.recipes.tune import tune

__all__ = [
    "HEAD_ONLY",
    "PAPERS",
    "Kind",
    "Recipe",
    "as_json",
    "default_kind",
    "modern",
    "override",
    "paper",
    "quick",
    "recipe_of",
    "shortened",
    "tune",
]

Kind = Literal["paper", "quick", "modern", "tune"]
WRITING = {"mnist5k", "mnist"}  # a mirrored digit is another sign
QUICK_BELOW = 10_000  # training images; the papers' recipes are for more


def paper(card: Architecture, data: DataSet) -> Recipe:
    """Return the recipe that the architecture's card names. Raises KeyError for an unknown name."""
    return modern(card, data) if card.recipe == "modern" else PAPERS[card.recipe]


def recipe_of(card: Architecture, data: DataSet, kind: Kind) -> Recipe:
    """Return the recipe of this kind for an architecture, adapted to few images; digits are never mirrored."""
    recipe = {"paper": paper, "quick": quick, "modern": modern, "tune": tune}[kind](card, data)
    recipe = replace(recipe, flip=recipe.flip and data.name not in WRITING)
    return for_few_images(recipe, len(data.train), photos=data.edge is None)


def default_kind(data: DataSet) -> Kind:
    """Return the kind of recipe that suits the size of a data set."""
    return "quick" if len(data.train) < QUICK_BELOW else "paper"
