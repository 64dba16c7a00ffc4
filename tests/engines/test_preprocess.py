"""Tests of preprocessing: pictures of every mode become the expected pixels."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from typing import Literal

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageOps

from engines.published.preprocess import Preprocess
from training.data import DataSet

DIGIT = Preprocess(mode="L", resize_edge=28, crop=28, pad=2)
PHOTO = Preprocess(mode="RGB", resize_edge=8, crop=6)


def test_a_picture_of_the_right_size_is_only_padded() -> None:
    grey = np.random.default_rng(0).integers(0, 256, (28, 28), dtype=np.uint8)
    pixels = DIGIT(Image.fromarray(grey))
    assert pixels.shape == DIGIT.shape == (32, 32, 1)
    assert np.array_equal(pixels[2:30, 2:30, 0], grey)
    assert pixels.sum() == grey.sum()


def test_the_shorter_edge_is_resized_and_the_centre_kept() -> None:
    wide = np.zeros((16, 64, 3), np.uint8)
    wide[:, 26:38] = (10, 20, 30)  # visible after 64 x 16 -> 32 x 8 -> the middle 6 x 6
    pixels = PHOTO(Image.fromarray(wide))
    assert pixels.shape == (6, 6, 3)
    assert (pixels[:, 1:5] == (10, 20, 30)).all()


def test_sixteen_bit_greys_are_scaled_not_clipped() -> None:
    grey = np.arange(28 * 28, dtype=np.uint16).reshape(28, 28) * 80
    assert np.array_equal(DIGIT(Image.fromarray(grey))[2:30, 2:30, 0], np.round(grey / 257))


@pytest.mark.parametrize("fill", [0, 255])
def test_transparent_pixels_show_the_background(fill: int) -> None:
    picture = Image.new("RGBA", (28, 28), (200, 200, 200, 0))
    preprocess = Preprocess(mode="L", resize_edge=28, crop=28, pad=2, fill=fill)
    assert (preprocess(picture) == fill).all()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"])
@pytest.mark.parametrize("preprocess", [DIGIT, PHOTO])
def test_white_is_white_in_every_mode(mode: str, preprocess: Preprocess) -> None:
    pixels = preprocess(Image.new("RGB", (40, 30), "white").convert(mode))
    pad = preprocess.pad
    assert pixels.shape == preprocess.shape
    assert (pixels[pad : len(pixels) - pad, pad : len(pixels) - pad] >= 254).all()


LEVELS = np.array([[200, 60], [200, 60]], np.uint8)  # the right half will be transparent
ALPHA = np.array([[255, 0], [255, 0]], np.uint8)
RGBA = Image.fromarray(np.dstack([LEVELS] * 3 + [ALPHA]))


def stating(picture: Image.Image, transparency: object) -> Image.Image:
    picture.info["transparency"] = transparency
    return picture


TRANSPARENT: dict[str, Image.Image] = {
    "RGBA": RGBA,
    "RGBa": RGBA.convert("RGBa"),
    "LA": RGBA.convert("LA"),
    "La": RGBA.convert("LA").convert("La"),
    "PA": RGBA.convert("PA"),
    "L": stating(Image.fromarray(LEVELS), 60),
    "RGB": stating(RGBA.convert("RGB"), (60, 60, 60)),
    "P, one entry": stating(Image.fromarray(LEVELS).convert("P"), 60),
    "P, alpha of each entry": stating(Image.fromarray(LEVELS).convert("P"), bytes(100) + b"\xff" * 156),
    "I;16": stating(Image.fromarray(LEVELS.astype(np.uint16) * 257), 60 * 257),
}


@pytest.mark.parametrize("name", TRANSPARENT)
@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("fill", [0, 90])
def test_transparency_is_seen_in_every_mode(name: str, mode: Literal["L", "RGB"], fill: int) -> None:
    pixels = Preprocess(mode=mode, resize_edge=2, crop=2, fill=fill)(TRANSPARENT[name])
    assert np.abs(pixels.astype(int) - np.array([200, fill])[None, :, None]).max() <= 1


@pytest.mark.parametrize(("transparent", "expected"), [(0, [255, 90]), (255, [90, 0])])
def test_transparency_is_seen_in_one_bit(transparent: int, expected: list[int]) -> None:
    picture = stating(Image.fromarray(np.array([[255, 0]] * 2, np.uint8)).convert("1"), transparent)
    assert Preprocess(mode="L", resize_edge=2, crop=2, fill=90)(picture)[0, :, 0].tolist() == expected


@pytest.mark.parametrize("mode", ["I", "F"])
def test_pixels_without_a_scale_are_refused(mode: str) -> None:
    with pytest.raises(ValueError, match="no known black and white"):
        PHOTO(Image.new(mode, (9, 9)))


# Dark strokes on a light ground

TURNED = replace(DIGIT, light_on_dark=True)


def test_only_a_light_border_turns_a_picture(digits: DataSet) -> None:
    for index in range(0, len(digits.held_out), 50):
        digit = digits.held_out.pictures[index]
        assert np.array_equal(TURNED(digit), DIGIT(digit))
        inverted = TURNED(ImageOps.invert(digit)).astype(int)
        assert np.abs(inverted - DIGIT(digit)).max() <= 16  # the darkest stroke becomes white


def seven(ground: float, ink: float, slope: float = 0.0) -> Image.Image:
    """Return a seven of a grey level on a ground that gets lighter by `slope` from left to right."""
    picture = Image.new("L", (280, 280), 0)
    ImageDraw.Draw(picture).line([(80, 60), (200, 60), (120, 230)], fill=255, width=20)
    light = (ground + slope * np.linspace(-0.5, 0.5, 280))[None, :]
    noise = np.random.default_rng(0).normal(0, 2, (280, 280))
    grey = light * np.where(np.asarray(picture), ink / ground, 1) + noise
    return Image.fromarray(grey.clip(0, 255).astype(np.uint8))


@pytest.mark.parametrize(("ground", "ink", "slope"), [(250, 5, 0), (200, 100, 0), (170, 50, 100), (110, 8, 0)])
def test_paper_becomes_black_and_ink_white(ground: float, ink: float, slope: float) -> None:
    expected = DIGIT(ImageOps.invert(seven(250, 5))).astype(int)
    assert np.abs(TURNED(seven(ground, ink, slope)).astype(int) - expected).mean() < 6


def test_blank_paper_stays_dark() -> None:
    assert TURNED(seven(200, 200)).max() < 64


@pytest.mark.parametrize("ink", [0, 255])
def test_strokes_on_transparent_pixels_get_a_ground_to_be_seen_on(ink: int) -> None:
    strokes = ImageOps.invert(seven(255, 0))
    picture = Image.merge("RGBA", [Image.new("L", strokes.size, ink)] * 3 + [strokes])
    assert np.abs(TURNED(picture).astype(int) - DIGIT(strokes)).mean() < 3


def test_coloured_ink_is_grey_in_colour_too() -> None:
    picture = ImageOps.colorize(seven(255, 0), "blue", "white")
    pixels = Preprocess(mode="RGB", resize_edge=28, crop=28, light_on_dark=True)(picture)
    assert (pixels.max(), np.ptp(pixels, axis=2).max()) == (255, 0)


def test_a_crop_must_fit() -> None:
    with pytest.raises(ValueError, match="a crop of 9 does not fit a picture of 8"):
        Preprocess(mode="L", resize_edge=8, crop=9)


def test_a_very_long_picture_needs_no_more_memory_than_its_pixels() -> None:
    tracemalloc.start()
    pixels = DIGIT(Image.new("1", (1, 10_000_000), 1))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (pixels[2:30, 2:30] == 255).all()
    assert peak < 10_000_000  # NumPy's part; the whole picture resized would be 28 x 280,000,000


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 1), (27, 29), (1001, 333)])
def test_pictures_of_every_size_are_accepted(size: tuple[int, int]) -> None:
    assert PHOTO(Image.new("RGB", size)).shape == (6, 6, 3)
