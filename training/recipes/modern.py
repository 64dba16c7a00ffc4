"""Modern recipe: one for every network, so that architectures can be compared."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import nn

from models.card import Architecture
from training.data import DataSet
from training.recipes.recipe import Recipe, override

# Initial values of networks that end with a ReLU: it would die before it has learnt anything, unless it starts high and
# no map is dropped.
INITIAL: dict[str, dict[str, Any]] = {
    "nin_cifar10": {"init_ones": ("6.2.conv",), "dropout": 0.0},
    "nin_imagenet": {"init_ones": ("7.2.conv",), "dropout": 0.0},
}


@cache
def needs_low_rate(card: Architecture) -> bool:
    """Return True if the network has ReLUs and no batch norm, so that a high learning rate would make it diverge."""
    with torch.random.fork_rng(devices=[]), torch.device("meta"):  # no memory, no random numbers of the training's
        kinds = {type(module) for module in card.build(card.classes).modules()}
    return nn.ReLU in kinds and nn.BatchNorm2d not in kinds


def modern(card: Architecture, data: DataSet) -> Recipe:
    """Return the modern recipe for an architecture, with a lower rate for ReLUs without batch norm."""
    recipe = Recipe(
        source="torchvision's training recipe of 2021 (pytorch.org/blog/how-to-train-state-of-the-art-models-using-"
        "torchvision-latest-primitives): 100 epochs of its 600. Left out: repeated augmentation, crops of 176 pixels",
        edge=card.small if data.edge else None,
        optimizer="sgd",
        lr=0.01 if needs_low_rate(card) else 0.125,
        warmup_epochs=5,
        weight_decay=2e-5,
        norm_decay=False,
        ema=0.04,
        label_smoothing=0.1,
        batch=256,
        epochs=100,
        area=None if data.edge else (0.08, 1),
        trivial=True,
        shift=(data.edge or 0) // 8,
        flip=True,
        mixup=0.2,
        cutmix=1,
        erasing=0.1,
    )
    return override(recipe, INITIAL.get(card.name, {}))
