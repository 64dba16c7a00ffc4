"""How each architecture is trained on small data: plain values, stored whole with every checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from engines.preprocess import Preprocess


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """`lr` is the peak rate: a linear warm-up leads to it and a cosine to zero, both counted in steps.

    A pixel p (0 to 255) enters the network as (p / 255 - mean) / std, a value a channel. `shift` is the most
    pixels by which a training image is moved, at random, each way.
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
    loss: Literal["cross_entropy", "map"] = "cross_entropy"


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
}

RECIPES: dict[str, dict[str, Recipe]] = {"mnist5k": MNIST}
