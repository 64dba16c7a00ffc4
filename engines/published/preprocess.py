"""Preprocessing from a picture to input pixels, shared by training, evaluation and serving."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

RESAMPLING = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


@dataclass(frozen=True, kw_only=True)
class Preprocess:
    """Preprocessing: resize the shorter edge, crop the centre, pad. The graph converts to float and normalises.

    `resize_edge`, `crop` and `pad` are in pixels, `pad` on each side. `fill`, 0 to 255, is the background of the data:
    the value of the padding, and the colour behind transparent pixels. Pillow antialiases when shrinking.
    """

    mode: Literal["L", "RGB"]
    resize_edge: int
    crop: int
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    pad: int = 0
    fill: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.crop <= self.resize_edge:
            raise ValueError(f"a crop of {self.crop} does not fit a picture of {self.resize_edge}")

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of the resulting pixels, (height, width, channels)."""
        edge = self.crop + 2 * self.pad
        return edge, edge, len(self.mode)

    def __call__(self, picture: Image.Image) -> NDArray[np.uint8]:
        """Return the uint8 pixels, (height, width, channels), of a picture in any of Pillow's modes."""
        picture = to_mode(picture, self.mode, self.fill)
        # Sizes are rounded as torchvision's Resize and CenterCrop round.
        short = min(picture.size)
        width, height = (self.resize_edge * edge // short for edge in picture.size)
        left, top = round((width - self.crop) / 2), round((height - self.crop) / 2)
        # Only the crop is resized: a whole picture of 1 x 1,000,000 would take gigabytes.
        x, y = picture.width / width, picture.height / height
        box = (left * x, top * y, (left + self.crop) * x, (top + self.crop) * y)
        pixels = np.asarray(picture.resize((self.crop, self.crop), RESAMPLING[self.interpolation], box))
        padded = np.full(self.shape, self.fill, np.uint8)  # np.pad would take as long as decoding a digit
        padded[self.pad : self.pad + self.crop, self.pad : self.pad + self.crop] = pixels.reshape(
            self.crop, self.crop, -1
        )
        return padded


def draft(picture: Image.Image, preprocesses: Iterable[Preprocess]) -> None:
    """Make Pillow decode a JPEG at a half, a quarter or an eighth of its size, but not below any `resize_edge`.

    Decoding is faster and the pixels differ slightly: `python -m engines verify --jpegs` compares the answers.
    """
    edge = max(preprocess.resize_edge for preprocess in preprocesses)
    picture.draft(None, (edge, edge))


def to_mode(picture: Image.Image, mode: str, fill: int) -> Image.Image:
    """Return a picture in `mode`, "L" or "RGB": 16-bit greys scaled to 8 bits, transparency blended over `fill`."""
    if picture.mode.startswith("I;16"):  # Pillow's own conversion clips at 255
        picture = Image.fromarray(np.round(np.asarray(picture) / 257).astype(np.uint8))
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        background = Image.new("RGBA", picture.size, (fill, fill, fill, 255))
        picture = Image.alpha_composite(background, picture).convert("RGB")
    # `convert` would copy a picture that has the mode already.
    return picture if picture.mode == mode else picture.convert(mode)
