"""Recipe of fine-tuning: the head first, then all layers at a tenth of the rate."""

from __future__ import annotations

from typing import Any

from models.card import Architecture
from training.data import DataSet
from training.recipes.modern import INITIAL, needs_low_rate
from training.recipes.recipe import Recipe, override
from training.recipes.small_data import AREA

BY_ARCHITECTURE: dict[str, dict[str, Any]] = {
    **INITIAL,
    "lenet5": {"loss": "map", "head_epochs": 0, "precision": "fp32"},  # the codes of its head are not trained
}


def tune(card: Architecture, data: DataSet) -> Recipe:
    """Return the recipe that starts from trained weights, with their input; `area` is for photos."""
    recipe = Recipe(
        source="ours, for fine-tuning: the head alone, then all layers at a tenth of the rate",
        optimizer="adamw",
        lr=3e-4 if needs_low_rate(card) else 1e-3,
        warmup_epochs=0.5,
        weight_decay=1e-2,
        batch=32,
        epochs=12,
        head_epochs=3,
        body=0.1,
        area=None if data.edge else AREA,
        shift=2 if data.edge else 0,
        flip=True,
    )
    return override(recipe, BY_ARCHITECTURE.get(card.name, {}))
