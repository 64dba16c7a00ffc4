"""What a forward pass keeps in memory at once, and how much of the picture each value has seen.

Both follow tensors from operation to operation, through additions and concatenations, which are no modules.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten
# what an engine computes in place, or as part of the convolution before it
IN_PLACE = {
    *(aten.native_batch_norm.default, aten.relu.default, aten.tanh.default, aten.sigmoid.default),
    *(aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.div.Tensor, aten.pow.Tensor_Scalar, aten.neg.default),
}


class Field(NamedTuple):
    """What an element depends on: a window of `size` pixels of the input, `step` pixels from its neighbour's.

    And on one of `fixed` pixels, the same for all elements of a map: that of the squeezed map which scaled it.
    """

    size: tuple[int, int]
    step: tuple[int, int]
    fixed: tuple[int, int] = (0, 0)

    def windows(self, kernel: Sequence[int], stride: Sequence[int]) -> Field:
        """Of an element that sees `kernel` (height, width) of these, `stride` from its neighbour's."""
        height, width = (s + (k - 1) * step for s, k, step in zip(self.size, kernel, self.step, strict=True))
        down, right = (step * s for step, s in zip(self.step, stride, strict=True))
        return Field((height, width), (down, right), self.fixed)


class Operation(NamedTuple):
    """Which of the tensors in memory it reads and which it adds, by number, with their bytes."""

    reads: set[int]
    writes: dict[int, int]
    in_place: bool


class Dataflow(TorchDispatchMode):
    """Watches the forward pass of the picture `x`, (1, channels, height, width), under `with`."""

    def __init__(self, x: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._fields = {id(x): Field((1, 1), (1, 1))}
        self._operations = [Operation(set(), {storage(x): x.nbytes}, in_place=False)]
        self._kept: list[object] = [x]  # so that no id is given twice

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        known = [leaf for leaf in tree_leaves(args) if id(leaf) in self._fields]
        if known:
            output = result[0] if isinstance(result, tuple) else result
            self._fields[id(output)] = field(func, args, [self._fields[id(leaf)] for leaf in known], output)
            reads = {storage(leaf) for leaf in known}
            writes = {} if storage(output) in reads else {storage(output): output.nbytes}
            self._operations.append(Operation(reads, writes, func in IN_PLACE))
            self._kept.append(output)
        return result

    def receptive_field(self, output: Tensor) -> tuple[int, int]:
        """Height and width of what an element of `output` depends on, the padding around the picture included."""
        seen = self._fields[id(output)]
        return largest([seen.size, seen.fixed])

    def start(self) -> int:
        """A mark, for `join`."""
        return len(self._operations)

    def join(self, start: int, x: Tensor, output: Tensor) -> None:
        """Take what happened since `start` for one operation on single elements, from `x` to `output`."""
        self._operations[start:] = [Operation({storage(x)}, {storage(output): output.nbytes}, in_place=True)]

    def peak_bytes(self) -> int:
        """Most bytes of tensors alive at once: each from the operation that makes it to the last that reads it."""
        last = {number: index for index, operation in enumerate(self._operations) for number in operation.reads}
        alive: dict[int, int] = {}
        peak = 0
        for index, operation in enumerate(self._operations):
            dying = [number for number in operation.reads if last[number] == index and number in alive]
            if operation.in_place:
                for old in [number for number in dying if alive[number] in operation.writes.values()][:1]:
                    del alive[old]
            alive |= operation.writes
            peak = max(peak, sum(alive.values()))
            for number in dying:
                alive.pop(number, None)
        return peak


def storage(tensor: Tensor) -> int:
    """The same number for all views of the same memory."""
    return int(tensor.untyped_storage()._cdata)


def field(func: Any, args: tuple[Any, ...], inputs: list[Field], output: Tensor) -> Field:
    """What an element of `output` depends on, where those of its inputs depend on `inputs`."""
    merged = merge(inputs)
    x = args[0]
    if func is aten.convolution.default:
        _, weight, _, stride, _, dilation = args[:6]
        return merged.windows([1 + (k - 1) * d for k, d in zip(weight.shape[2:], dilation, strict=True)], stride)
    if func in {aten.max_pool2d_with_indices.default, aten.avg_pool2d.default}:
        kernel, *stride = args[1:3]
        return merged.windows(kernel, stride[0] if stride and stride[0] else kernel)
    if func is aten.slice.Tensor and args[1] >= 2 and len(args) == 5:
        return merged.windows((1, 1), (args[4], 1) if args[1] == 2 else (1, args[4]))
    if isinstance(x, Tensor) and x.ndim == 4 and output.ndim in {2, 4}:
        before, after = x.shape[2:], output.shape[2:] or (1, 1)
        return merged.windows(*zip(*map(parts, before, after), strict=True))
    return merged


def merge(inputs: list[Field]) -> Field:
    """Of an element made of one of each; a map whose elements are farther apart is spread over the others."""
    step = min(seen.step for seen in inputs)
    alike = [seen.size for seen in inputs if seen.step == step]
    spread = [seen.size for seen in inputs if seen.step != step]
    return Field(largest(alike), step, largest([*spread, *(seen.fixed for seen in inputs)]))


def largest(sizes: list[tuple[int, int]]) -> tuple[int, int]:
    """The most of heights and of widths."""
    return max(height for height, _ in sizes), max(width for _, width in sizes)


def parts(length: int, count: int) -> tuple[int, int]:
    """The longest of `count` equal parts of `length` pixels, as adaptive pools cut them, and their distance."""
    longest = max(-(-(i + 1) * length // count) - i * length // count for i in range(count))
    return longest, max(1, length // count)
