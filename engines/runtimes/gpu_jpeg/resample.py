"""Arithmetic of `Preprocess` for a GPU: tables of whole-number weights, and the sums that a kernel computes by them.

Pillow resizes pixels of 8 bits in two passes, one along each axis, with weights in units of 2**-22 and a rounding to 8
bits after each pass. The tables have the same weights, in the same order, so that the sums are Pillow's pixels.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from engines.published.preprocess import Preprocess

BITS = 22  # of a weight's fraction
SUPPORT = {"bilinear": 1.0, "bicubic": 2.0}  # pixels on each side of the centre, when not shrinking
LUMA, LUMA_BITS = (19595, 38470, 7471), 16  # weights of red, green and blue in grey, as of ITU-R 601


class Tables(NamedTuple):
    """Tables of a picture's columns and rows: int32, a row for each pixel of the crop along that axis.

    A row is the first source pixel, the number of source pixels, their weights, and zeros. `rows_first` states that the
    first pass reduces the height.
    """

    columns: NDArray[np.int32]
    rows: NDArray[np.int32]
    rows_first: bool


@lru_cache(maxsize=1024)  # sizes, of 10 kB each for photos of a quarter of a megapixel, 100 kB for 50 megapixels
def tables(preprocess: Preprocess, width: int, height: int) -> Tables:
    """Return the tables that resize a picture of `width` x `height` pixels to the crop of `preprocess`."""
    left, top, right, bottom = preprocess.box(width, height)
    crop, filtered_by = preprocess.crop, preprocess.interpolation
    # Pillow 13 reduces the height of tall pictures first, by a rule that was found by trying; Pillow 12 has others. The
    # order changes a rounding, and more where sums of bicubic weights are cut to 0 or 255.
    rows_first = height - crop > 2 * max(0, width - crop)
    return Tables(
        table(width, left, right, crop, filtered_by), table(height, top, bottom, crop, filtered_by), rows_first
    )


def table(
    size: int, start: float, stop: float, outputs: int, interpolation: Literal["bilinear", "bicubic"]
) -> NDArray[np.int32]:
    """Return the table that resizes the part from `start` to `stop` of an axis of `size` pixels to `outputs` pixels."""
    first_edge, last_edge = np.float32(start), np.float32(stop)  # Pillow's parameters are of single precision
    scale = float(last_edge - first_edge) / outputs
    stretch = max(scale, 1.0)  # shrinking widens the filter, which antialiases
    support = SUPPORT[interpolation] * stretch
    centres = float(first_edge) + (np.arange(outputs) + 0.5) * scale
    firsts = np.trunc(centres - support + 0.5).clip(0).astype(np.int64)
    counts = np.trunc(centres + support + 0.5).clip(max=size).astype(np.int64) - firsts
    offsets = np.arange(counts.max())
    distances = np.abs(((offsets + firsts[:, None]) - centres[:, None] + 0.5) * (1.0 / stretch))
    weights = bilinear(distances) if interpolation == "bilinear" else bicubic(distances)
    weights[offsets >= counts[:, None]] = 0
    weights /= weights.cumsum(axis=1)[:, -1:]  # one after the other, as Pillow adds; NumPy's sum adds in pairs
    whole = np.trunc(weights * 2**BITS + np.copysign(0.5, weights))
    return np.column_stack([firsts, counts, whole]).astype(np.int32)


def bilinear(distance: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the weights of the triangle filter at absolute distances."""
    return (1.0 - distance).clip(0)


def bicubic(distance: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the weights of the cubic convolution filter with a = -1/2 at absolute distances."""
    near = (1.5 * distance - 2.5) * distance * distance + 1
    far = (((distance - 5) * distance + 8) * distance - 4) * -0.5
    return np.where(distance < 1, near, np.where(distance < 2, far, 0.0))


def resized(preprocess: Preprocess, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the input pixels for a decoded picture, (height, width, 3), by the same sums as the kernel."""
    if preprocess.mode == "L":
        luma = pixels.astype(np.int64) @ LUMA + (1 << LUMA_BITS >> 1)
        pixels = (luma >> LUMA_BITS).astype(np.uint8)[:, :, None]
    columns, rows, rows_first = tables(preprocess, pixels.shape[1], pixels.shape[0])
    if rows_first:
        crop = weighted(weighted(pixels, rows).swapaxes(0, 1), columns).swapaxes(0, 1)
    else:
        crop = weighted(weighted(pixels.swapaxes(0, 1), columns).swapaxes(0, 1), rows)
    padded = np.full(preprocess.shape, preprocess.fill, np.uint8)
    inside = slice(preprocess.pad, preprocess.pad + preprocess.crop)
    padded[inside, inside] = crop
    return padded


def weighted(pixels: NDArray[np.uint8], weights: NDArray[np.int32]) -> NDArray[np.uint8]:
    """Return the sums along the first axis by the rows of a table, rounded to 8 bits."""
    sums = np.empty((len(weights), *pixels.shape[1:]), np.uint8)
    for place, (first, count, *factors) in enumerate(weights.tolist()):
        source = pixels[first : first + count].astype(np.int32)
        total = np.tensordot(np.array(factors[:count], np.int32), source, axes=1) + (1 << BITS >> 1)
        sums[place] = (total >> BITS).clip(0, 255)
    return sums
