"""Quick recipes, for small data on a CPU: minutes rather than days."""

from __future__ import annotations

from typing import Any

from models.card import Architecture
from training.data import DataSet
from training.recipes.modern import INITIAL, needs_low_rate
from training.recipes.recipe import Recipe, override

# Values that differ from the common ones below, by family and then by architecture.
BY_FAMILY: dict[str, dict[str, Any]] = {
    # A step over so many weights is mostly the optimizer's work, so batches are larger.
    "alexnet": {"batch": 64},
    "zfnet": {"batch": 64},
    # The 4096-wide layers have no batch norm, even in the networks that have it elsewhere.
    "vgg": {"batch": 128, "lr": 3e-4},
    # Networks of 100 layers learn sooner so: ResNet-101 reaches 97.7 % of mnist5k in 3 epochs, without 94.6 %.
    "resnet": {"zero_init_residual": True},
    "resnext": {"zero_init_residual": True},
}
BY_ARCHITECTURE: dict[str, dict[str, Any]] = {
    "lenet5": {
        "source": "ours; input and loss of the paper (section III, equation 9), not its Levenberg-Marquardt",
        "mean": (0.1 / 1.275,),  # background -0.1
        "std": (1 / 1.275,),  # and ink 1.175
        "lr": 3e-3,
        "warmup_epochs": 1,
        "weight_decay": 1e-2,
        "epochs": 15,
        "shift": 1,
        "loss": "map",
        "precision": "fp32",
    },
    "lenet5_modern": {"lr": 3e-3, "weight_decay": 1e-2, "epochs": 15, "shift": 1, "precision": "fp32"},
    "nin_cifar10": {"lr": 2e-4, **INITIAL["nin_cifar10"]},
    "nin_imagenet": {"lr": 1e-4, "warmup_epochs": 2, **INITIAL["nin_imagenet"]},
    "resnet20_cifar": {
        "optimizer": "nesterov",
        "lr": 0.1,
        "warmup_epochs": 1,
        "weight_decay": 1e-4,
        "batch": 64,
        "epochs": 12,
        "precision": "fp32",
    },
}


def quick(card: Architecture, data: DataSet) -> Recipe:
    """Return the quick recipe of an architecture for `data`; small pictures enter at 32 x 32 where the net allows."""
    small = data.edge is not None and card.smallest <= 32
    recipe = Recipe(
        source="ours, for small data",
        edge=32 if small else card.small,
        optimizer="adamw",
        lr=3e-4 if needs_low_rate(card) else 2e-3,
        warmup_epochs=0.5,
        weight_decay=5e-2,
        batch=32,
        epochs=12,
        shift=2,
        flip=True,
    )
    return override(recipe, BY_FAMILY.get(card.family, {}) | BY_ARCHITECTURE.get(card.name, {}))
