"""Kernel that crops and resizes a batch of decoded pictures of any sizes at once, and the layout of what it reads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from engines.published.preprocess import Preprocess
from engines.runtimes.gpu_jpeg.resample import BITS, LUMA, LUMA_BITS, Tables, tables

BLOCK = 16, 16  # threads, each of which computes a pixel of the output


class Decoded(NamedTuple):
    """Picture in memory: address of its RGB pixels, rows without gaps, and its place in the output."""

    pixels: int
    width: int
    height: int
    place: int


class Description(NamedTuple):
    """Numbers of one picture that the kernel reads, in this order; tables by their places among all tables."""

    pixels: int
    pitch: int
    place: int
    columns: int
    column_length: int
    rows: int
    row_length: int
    rows_first: int


SOURCE = f"""
struct Description {{
    long long {", ".join(Description._fields)};
}};

__device__ int rounded(int sum) {{
    sum >>= {BITS};
    return sum < 0 ? 0 : sum > 255 ? 255 : sum;
}}

__device__ int luma(const unsigned char* rgb) {{
    return (rgb[0] * {LUMA[0]} + rgb[1] * {LUMA[1]} + rgb[2] * {LUMA[2]} + {1 << LUMA_BITS >> 1}) >> {LUMA_BITS};
}}

extern "C" __global__ void resize(
    const Description* descriptions, const int* tables, unsigned char* output, int crop, int pad, int fill, int channels
) {{
    const Description picture = descriptions[blockIdx.z];
    const int edge = crop + 2 * pad;
    int x = blockIdx.x * blockDim.x + threadIdx.x, y = blockIdx.y * blockDim.y + threadIdx.y;
    if (x >= edge || y >= edge) return;
    unsigned char* out = output + ((picture.place * edge + y) * edge + x) * channels;
    x -= pad;
    y -= pad;
    if (x < 0 || y < 0 || x >= crop || y >= crop) {{
        for (int channel = 0; channel < channels; channel++) out[channel] = fill;
        return;
    }}
    // A row of a table: the first source pixel, the number of source pixels, their weights.
    const int* column = tables + picture.columns + x * picture.column_length;
    const int* row = tables + picture.rows + y * picture.row_length;
    const int* first = picture.rows_first ? row : column;
    const int* second = picture.rows_first ? column : row;
    const long long first_step = picture.rows_first ? picture.pitch : 3;
    const long long second_step = picture.rows_first ? 3 : picture.pitch;
    const unsigned char* line = (const unsigned char*)picture.pixels + first[0] * first_step + second[0] * second_step;
    const int half = {1 << BITS >> 1};
    int sums[3] = {{half, half, half}};
    for (int i = 0; i < second[1]; i++, line += second_step) {{
        int parts[3] = {{half, half, half}};
        const unsigned char* source = line;
        for (int k = 0; k < first[1]; k++, source += first_step) {{
            const int weight = first[2 + k];
            if (channels == 1) {{
                parts[0] += weight * luma(source);
            }} else {{
                parts[0] += weight * source[0];
                parts[1] += weight * source[1];
                parts[2] += weight * source[2];
            }}
        }}
        for (int channel = 0; channel < 3; channel++) sums[channel] += second[2 + i] * rounded(parts[channel]);
    }}
    for (int channel = 0; channel < channels; channel++) out[channel] = rounded(sums[channel]);
}}
"""


class Packed(NamedTuple):
    """Descriptions of a batch's pictures, and the tables that the descriptions refer to; equal sizes share tables."""

    descriptions: NDArray[np.int64]
    tables: list[NDArray[np.int32]]

    def write(self, memory: NDArray[np.uint8]) -> None:
        """Write the descriptions and then the tables to memory of `size` bytes."""
        at = self.descriptions.nbytes
        memory[:at] = self.descriptions.view(np.uint8).reshape(-1)
        for table in self.tables:
            memory[at : at + table.nbytes] = table.view(np.uint8).reshape(-1)
            at += table.nbytes

    @property
    def size(self) -> int:
        """Number of bytes of all descriptions and tables."""
        return self.descriptions.nbytes + sum(table.nbytes for table in self.tables)


def pack(preprocess: Preprocess, pictures: Sequence[Decoded]) -> Packed:
    """Return what the kernel reads to resize `pictures`."""
    needed: list[NDArray[np.int32]] = []
    places: dict[tuple[int, int], tuple[Tables, int]] = {}  # of a size's tables
    count = 0
    descriptions = []
    for pixels, width, height, place in pictures:
        if (width, height) not in places:
            made = tables(preprocess, width, height)
            needed += made.columns, made.rows
            places[width, height] = made, count
            count += made.columns.size + made.rows.size
        (columns, rows, rows_first), at = places[width, height]
        lengths = columns.shape[1], rows.shape[1]
        descriptions.append(
            Description(pixels, 3 * width, place, at, lengths[0], at + columns.size, lengths[1], rows_first)
        )
    return Packed(np.array(descriptions, np.int64), needed)


def scalars(preprocess: Preprocess) -> tuple[int, int, int, int]:
    """Return the last four arguments of the kernel, each a C int: crop, pad, fill, channels."""
    return preprocess.crop, preprocess.pad, preprocess.fill, len(preprocess.mode)


def grid(preprocess: Preprocess, count: int) -> tuple[int, int, int]:
    """Return the numbers of blocks along x, y and the pictures."""
    edge = preprocess.shape[0]
    return -(-edge // BLOCK[0]), -(-edge // BLOCK[1]), count
