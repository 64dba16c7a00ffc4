"""Preprocessing from a picture to input pixels, shared by training, evaluation and serving."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageStat

HALF_OPAQUE = [255 if alpha >= 128 else 0 for alpha in range(256)]  # by alpha
LEAST_INK = 32  # grey levels between the darkest stroke and its ground, below which paper has no strokes
RESAMPLING = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


@dataclass(frozen=True, kw_only=True)
class Preprocess:
    """Preprocessing: resize the shorter edge, crop the centre, pad. The graph converts to float and normalises.

    `resize_edge`, `crop` and `pad` are in pixels, `pad` on each side. `fill`, 0 to 255, is the background of the data:
    the value of the padding, and the colour behind transparent pixels. Pillow antialiases when shrinking.

    `light_on_dark` states that the data are light strokes on a dark ground, as MNIST's digits are: a picture whose
    border is light is inverted, see `darkened`, and dark strokes on transparent pixels get a light ground before.
    """

    mode: Literal["L", "RGB"]
    resize_edge: int
    crop: int
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    pad: int = 0
    fill: int = 0
    # Not compared, so that a training from before this field goes on: the pictures of such data are the same by both.
    light_on_dark: bool = field(default=False, compare=False)

    def __post_init__(self) -> None:
        if not 0 < self.crop <= self.resize_edge:
            raise ValueError(f"a crop of {self.crop} does not fit a picture of {self.resize_edge}")

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of the resulting pixels, (height, width, channels)."""
        edge = self.crop + 2 * self.pad
        return edge, edge, len(self.mode)

    def box(self, width: int, height: int) -> tuple[float, float, float, float]:
        """Return the part of a picture that becomes the crop: left, top, right, bottom, in the picture's pixels."""
        # Sizes are rounded as torchvision's Resize and CenterCrop round.
        short = min(width, height)
        wide, high = self.resize_edge * width // short, self.resize_edge * height // short
        left, top = round((wide - self.crop) / 2), round((high - self.crop) / 2)
        x, y = width / wide, height / high
        return left * x, top * y, (left + self.crop) * x, (top + self.crop) * y

    def in_mode(self, picture: Image.Image) -> Image.Image:
        """Return a picture in `mode`; see `to_mode`. Dark strokes on transparent pixels get a light ground."""
        fill = self.fill
        if self.light_on_dark and picture.has_transparency_data:
            picture = with_alpha(picture)
            dark = ImageStat.Stat(picture.convert("L"), picture.getchannel("A").point(HALF_OPAQUE)).median[0] < 128
            fill = 255 if dark else fill
        return to_mode(picture, self.mode, fill)

    def __call__(self, picture: Image.Image) -> NDArray[np.uint8]:
        """Return the uint8 pixels, (height, width, channels), of a picture in any of Pillow's modes."""
        picture = self.in_mode(picture)
        # Only the crop is resized: a whole picture of 1 x 1,000,000 would take gigabytes.
        resized = picture.resize(
            (self.crop, self.crop), RESAMPLING[self.interpolation], self.box(picture.width, picture.height)
        )
        pixels = np.asarray(resized)
        if self.light_on_dark:
            pixels = darkened(pixels)
        padded = np.full(self.shape, self.fill, np.uint8)  # np.pad would take as long as decoding a digit
        padded[self.pad : self.pad + self.crop, self.pad : self.pad + self.crop] = pixels.reshape(
            self.crop, self.crop, -1
        )
        return padded


def darkened(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return dark strokes on a lighter ground as light strokes on black, and others, as MNIST's own digits, unchanged.

    The ground is a plane through the border's pixels, as of a sheet that is lit from one side. What is darker than the
    ground by the most becomes white, unless that is so little that nothing may be drawn. Colours become grey.
    """
    grey = pixels.reshape(*pixels.shape[:2], -1).mean(2)
    border = np.ones_like(grey, dtype=bool)
    border[1:-1, 1:-1] = False
    ground = np.median(grey[border])
    if ground < 128 and ground - grey.min() <= grey.max() - ground:
        return pixels
    places = np.stack([*np.indices(grey.shape), np.ones_like(grey)], axis=-1)
    plane, *_ = np.linalg.lstsq(places[border], grey[border], rcond=None)
    ink = (places @ plane - grey).clip(0)
    light = (ink * (255 / max(LEAST_INK, ink.max()))).round().astype(np.uint8)
    return light if pixels.ndim == 2 else np.repeat(light[:, :, None], pixels.shape[2], axis=2)


def draft(picture: Image.Image, preprocesses: Iterable[Preprocess]) -> None:
    """Make Pillow decode a JPEG at a half, a quarter or an eighth of its size, but not below any `resize_edge`.

    Decoding is faster and the pixels differ slightly: `python -m engines verify --jpegs` compares the answers.
    """
    edge = max(preprocess.resize_edge for preprocess in preprocesses)
    picture.draft(None, (edge, edge))


def to_mode(picture: Image.Image, mode: str, fill: int) -> Image.Image:
    """Return a picture in `mode`, "L" or "RGB": 16-bit greys scaled to 8 bits, transparency blended over `fill`.

    Raises ValueError for 32-bit integers and floats, whose scale is not known.
    """
    check_scale(picture)
    if picture.has_transparency_data:
        picture = blended(with_alpha(picture), fill)
    elif picture.mode.startswith("I;16"):  # Pillow's own conversion clips at 255
        picture = eight_bits(picture)
    elif picture.mode == "LAB":  # Pillow has no way to grey
        picture = picture.convert("RGB")
    # `convert` would copy a picture that has the mode already.
    return picture if picture.mode == mode else picture.convert(mode)


def with_alpha(picture: Image.Image) -> Image.Image:
    """Return a picture with transparency, in any of Pillow's ways to state it, as RGBA."""
    if picture.mode.startswith("I;16"):  # Pillow's own conversion clips, and compares the clipped values
        opaque = np.asarray(picture) != picture.info["transparency"]
        grey = eight_bits(picture)
        picture = Image.merge("LA", (grey, Image.fromarray(opaque.astype(np.uint8) * np.uint8(255))))
    elif picture.mode == "La":  # Pillow converts it to nothing but LA
        picture = picture.convert("LA")
    return picture if picture.mode == "RGBA" else picture.convert("RGBA")


def blended(picture: Image.Image, fill: int) -> Image.Image:
    """Return an RGBA picture as RGB, over a background of the grey level `fill`."""
    background = Image.new("RGBA", picture.size, (fill, fill, fill, 255))
    return Image.alpha_composite(background, picture).convert("RGB")


def eight_bits(picture: Image.Image) -> Image.Image:
    """Return 16-bit greys scaled to 8 bits."""
    return Image.fromarray(((np.asarray(picture).astype(np.uint32) + 128) // 257).astype(np.uint8))


def check_scale(picture: Image.Image) -> None:
    """Raise ValueError for 32-bit integers, signed integers and floats: nothing states their black and white."""
    if picture.mode in {"I", "F"}:
        kind = "floats" if picture.mode == "F" else "32-bit or signed integers"
        raise ValueError(f"its pixels are {kind}, which have no known black and white; save it with 8 or 16 bits")
