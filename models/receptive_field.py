"""Receptive fields: the window of the input that each element of a feature map depends on.

The algorithm follows the forward pass operation by operation: a window of `kernel` elements, moved by `stride`, over
elements that see `size` pixels and stand `step` pixels apart gives elements that see size + (kernel - 1) * step pixels
and stand stride * step apart (Araujo, Norris, Sim, "Computing Receptive Fields of Convolutional Neural Networks",
Distill 2019). Where branches join, an element sees the largest of the joined windows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

aten = torch.ops.aten


class ReceptiveField(NamedTuple):
    """Window of `size` (height, width) input pixels that an element depends on; neighbours' windows are `step` apart.

    `fixed` (height, width) is a second window, which is the same for all elements of a map: the window behind a
    squeeze-and-excitation's scale.
    """

    size: tuple[int, int]
    step: tuple[int, int]
    fixed: tuple[int, int] = (0, 0)

    @property
    def extent(self) -> tuple[int, int]:
        """Height and width of the larger window, including padding around the picture."""
        return largest([self.size, self.fixed])

    def slide(self, kernel: Sequence[int], stride: Sequence[int]) -> ReceptiveField:
        """Return the field of an element that combines a `kernel` (height, width) of elements with this field."""
        height, width = (s + (k - 1) * step for s, k, step in zip(self.size, kernel, self.step, strict=True))
        down, right = (step * s for step, s in zip(self.step, stride, strict=True))
        return ReceptiveField((height, width), (down, right), self.fixed)


def field_after(func: Any, args: tuple[Any, ...], inputs: list[ReceptiveField], output: Tensor) -> ReceptiveField:
    """Return the field of an element of `output`, which `func(*args)` computed from tensors with fields `inputs`."""
    merged = merge(inputs)
    x = args[0]
    if func is aten.convolution.default:
        _, weight, _, stride, _, dilation = args[:6]
        return merged.slide([1 + (k - 1) * d for k, d in zip(weight.shape[2:], dilation, strict=True)], stride)
    if func in {aten.max_pool2d_with_indices.default, aten.avg_pool2d.default}:
        kernel, *stride = args[1:3]
        return merged.slide(kernel, stride[0] if stride and stride[0] else kernel)
    if func is aten.slice.Tensor and args[1] >= 2 and len(args) == 5:
        return merged.slide((1, 1), (args[4], 1) if args[1] == 2 else (1, args[4]))
    if isinstance(x, Tensor) and x.ndim == 4 and output.ndim in {2, 4}:  # an adaptive pool or flattening
        before, after = x.shape[2:], output.shape[2:] or (1, 1)
        return merged.slide(*zip(*map(bins, before, after), strict=True))
    return merged


def merge(inputs: list[ReceptiveField]) -> ReceptiveField:
    """Return the field after combining inputs; an input with a larger step is treated as broadcast over the others."""
    step = min(field.step for field in inputs)
    aligned = [field.size for field in inputs if field.step == step]
    broadcast = [field.size for field in inputs if field.step != step]
    return ReceptiveField(largest(aligned), step, largest([*broadcast, *(field.fixed for field in inputs)]))


def largest(sizes: list[tuple[int, int]]) -> tuple[int, int]:
    """Return the largest height and the largest width."""
    return max(height for height, _ in sizes), max(width for _, width in sizes)


def bins(length: int, count: int) -> tuple[int, int]:
    """Return length and distance of the `count` bins into which an adaptive pool cuts `length` pixels.

    Bins of unequal length count as the longest of them.
    """
    longest = max(-(-(i + 1) * length // count) - i * length // count for i in range(count))
    return longest, max(1, length // count)
