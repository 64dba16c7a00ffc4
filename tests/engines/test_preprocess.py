"""Tests of preprocessing: pictures of every mode become the expected pixels."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from PIL import Image

from engines.published.preprocess import Preprocess

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
