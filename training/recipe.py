"""How each architecture is trained on small data: plain values, stored whole with every checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from engines.preprocess import Preprocess


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """`lr` is the peak rate: a linear warm-up leads to it and a cosine to zero, both counted in steps.

    A pixel p (0 to 255) enters the network as (p / 255 - mean) / std, a value a channel. `shift` is the most
    pixels by which a training image is moved, at random, each way. `precision` is that of the forward and
    backward pass; weights and optimizer are always float32.
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


MEAN, STD = (0.1307,) * 3, (0.3081,) * 3  # of MNIST's training images

MNIST = {
    "lenet5": Recipe(
        # "centred in a 32x32 field", background -0.1 and ink 1.175 (paper, section III)
        preprocess=Preprocess(mode="L", resize_edge=28, crop=28, pad=2),
        mean=(0.1 / 1.275,),
        std=(1 / 1.275,),
        # not the paper's stochastic Levenberg-Marquardt with batches of one
        optimizer="adamw",
        lr=3e-3,
        warmup_epochs=1,
        weight_decay=1e-2,
        batch=32,
        epochs=15,
        shift=1,
        loss="map",  # equation 9
    ),
    "resnet20_cifar": Recipe(
        preprocess=Preprocess(mode="RGB", resize_edge=28, crop=28, pad=2),
        mean=MEAN,
        std=STD,
        optimizer="sgd",
        lr=0.1,
        warmup_epochs=1,
        weight_decay=1e-4,
        batch=64,
        epochs=12,
        shift=2,
    ),
    "senet154": Recipe(
        preprocess=Preprocess(mode="RGB", resize_edge=64, crop=64),
        mean=MEAN,
        std=STD,
        optimizer="adamw",
        lr=1e-3,
        warmup_epochs=1,
        weight_decay=5e-2,
        batch=32,
        epochs=5,
        shift=4,
        precision="bf16",
    ),
}

RECIPES: dict[str, dict[str, Recipe]] = {"mnist5k": MNIST}
