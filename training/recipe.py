"""How each architecture is trained on small data: plain values, stored whole with every checkpoint."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from engines.preprocess import Preprocess
from models.card import Architecture
from models.zoo import ZOO


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """`lr` is the peak rate: a linear warm-up leads to it and a cosine to zero, both counted in steps.

    A pixel p (0 to 255) enters the network as (p / 255 - mean) / std, a value a channel. `shift` is the most
    pixels by which a training image is moved, at random, each way. `precision` is that of the forward and
    backward pass; weights and optimizer are always float32. `auxiliary` weighs the loss of each auxiliary head, where
    the network has any (GoogLeNet's paper, section 5).
    """

    preprocess: Preprocess
    mean: tuple[float, ...]
    std: tuple[float, ...]
    optimizer: Literal["adamw", "sgd"]
    lr: float
    warmup_epochs: float
    weight_decay: float
    batch: int
    epochs: int
    shift: int = 0
    precision: Literal["fp32", "bf16"] = "fp32"
    loss: Literal["cross_entropy", "map"] = "cross_entropy"
    auxiliary: float = 0.3


MEAN, STD = (0.1307,) * 3, (0.3081,) * 3  # of MNIST's training images
WITHOUT_BATCH_NORM = {"lenet", "alexnet", "zfnet", "nin"}


def quick(card: Architecture) -> Recipe:
    """For MNIST at the size the card declares for small images: a start for every network, tuned for none."""
    channels, edge, plain = card.input_shape[0], card.small, card.family in WITHOUT_BATCH_NORM
    plain = plain or card.name == "googlenet" or (card.family == "vgg" and not card.name.endswith("_bn"))
    padded = edge == 32  # "centred in a 32x32 field": digits keep their own 28 pixels
    return Recipe(
        preprocess=Preprocess(
            mode="L" if channels == 1 else "RGB",
            resize_edge=28 if padded else edge,
            crop=28 if padded else edge,
            pad=2 if padded else 0,
        ),
        mean=MEAN[:channels],
        std=STD[:channels],
        optimizer="adamw",
        lr=3e-4 if plain else 1e-3,
        warmup_epochs=1,
        weight_decay=5e-2,
        batch=32,
        epochs=5,
        shift=edge // 16,
        precision="fp32" if card.family == "lenet" else "bf16",
    )


MNIST = {name: quick(card) for name, card in ZOO.items()} | {
    "lenet5": replace(
        quick(ZOO["lenet5"]),
        # background -0.1 and ink 1.175 (paper, section III)
        mean=(0.1 / 1.275,),
        std=(1 / 1.275,),
        # not the paper's stochastic Levenberg-Marquardt with batches of one
        lr=3e-3,
        weight_decay=1e-2,
        epochs=15,
        shift=1,
        loss="map",  # equation 9
    ),
    "resnet20_cifar": replace(
        quick(ZOO["resnet20_cifar"]),
        optimizer="sgd",
        lr=0.1,
        weight_decay=1e-4,
        batch=64,
        epochs=12,
        precision="fp32",
    ),
}

RECIPES: dict[str, dict[str, Recipe]] = {"mnist5k": MNIST}
