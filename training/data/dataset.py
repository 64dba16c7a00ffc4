"""Data set: images to train on, images held out, and their labels."""

from __future__ import annotations

from dataclasses import dataclass

from training.data.images import Images
from training.errors import DataError


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """Data set with a fixed split; held-out images are never trained on.

    `spec` is the argument of `load`; `split` describes how the held-out images were chosen. `edge` is the edge of all
    pictures in pixels where they are small squares of one size, else None. `mean` and `std` (0 to 1), one value per
    channel, describe the training pictures (for mnist5k all of MNIST's). `fill` (0 to 255) is the grey level of
    padding. `light_on_dark` states that every picture has light strokes on a dark ground, up to its border.
    """

    name: str
    spec: str
    split: str
    labels: tuple[str, ...]
    edge: int | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fill: int
    light_on_dark: bool = False
    train: Images
    held_out: Images

    def check_train(self) -> None:
        """Raise DataError if only the held-out images are on this machine."""
        if not len(self.train):
            raise DataError(f"{self.spec} has no images to train on, only {len(self.held_out)} held-out ones")

    def check_split(self, split: str) -> None:
        """Raise DataError if `split`, which a network was trained on, differs: it may have seen held-out images."""
        if self.split != split:
            raise DataError(f"{self.spec} has changed: trained with {split!r}, it is {self.split!r} now")
