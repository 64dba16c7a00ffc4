"""Record of the tensor operations of a forward pass, for peak memory, receptive fields and depth.

`Dataflow` notes for each operation which tensors are read and which are created. The record yields the peak memory, the
most bytes of tensors that exist at the same time; the receptive field of each tensor, the window of input pixels
that one of its elements depends on; and its depth, the weight layers on the longest path from the picture.

torch calls a TorchDispatchMode for every operation. Module hooks would not be enough: additions and concatenations are
not modules.
"""

from __future__ import annotations

from collections import Counter
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from models.receptive_field import ReceptiveField, field_after

aten = torch.ops.aten
# Engines compute these operations in place, or as part of the convolution before them.
IN_PLACE = {
    *(aten.native_batch_norm.default, aten.relu.default, aten.tanh.default, aten.sigmoid.default),
    *(aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.div.Tensor, aten.pow.Tensor_Scalar, aten.neg.default),
}
WEIGHTED = {aten.convolution.default, aten.addmm.default, aten.mm.default}


class Operation(NamedTuple):
    """Operation of a forward pass: numbers of the memories read, and numbers and bytes of new memories."""

    reads: set[int]
    writes: dict[int, int]
    in_place: bool


class Dataflow(TorchDispatchMode):
    """Context manager that records the forward pass of the picture `x`, (1, channels, height, width)."""

    def __init__(self, x: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._fields = {id(x): ReceptiveField((1, 1), (1, 1))}
        self._depths = {id(x): 0}
        self._operations = [Operation(set(), {storage(x): x.nbytes}, in_place=False)]
        self._kept: list[object] = [x]  # keeps ids unique: Python reuses the id of a freed object

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        inputs = [leaf for leaf in tree_leaves(args) if id(leaf) in self._fields]
        if inputs:
            output = result[0] if isinstance(result, tuple) else result
            self._fields[id(output)] = field_after(func, args, [self._fields[id(leaf)] for leaf in inputs], output)
            # Papers do not count the layers of squeeze-and-excitation, whose output is a factor of each channel.
            path = [leaf for leaf in inputs if func is not aten.mul.Tensor or leaf.shape == output.shape] or inputs
            self._depths[id(output)] = max(self._depths[id(leaf)] for leaf in path) + (func in WEIGHTED)
            reads = {storage(leaf) for leaf in inputs}
            writes = {} if storage(output) in reads else {storage(output): output.nbytes}
            self._operations.append(Operation(reads, writes, func in IN_PLACE))
            self._kept.append(output)
        return result

    def receptive_field(self, output: Tensor) -> tuple[int, int]:
        """Return height and width of the receptive field of an element, including padding around the picture."""
        return self._fields[id(output)].extent

    def depth(self, output: Tensor) -> int:
        """Return the number of convolutions and linear layers on the longest path from the picture to a tensor."""
        return self._depths[id(output)]

    def start(self) -> int:
        """Return the number of operations so far, as the `start` of a later `join`."""
        return len(self._operations)

    def join(self, start: int, x: Tensor, output: Tensor) -> None:
        """Replace the operations since `start` by one elementwise operation that computes `output` from `x`."""
        self._operations[start:] = [Operation({storage(x)}, {storage(output): output.nbytes}, in_place=True)]

    def reads(self) -> Counter[int]:
        """Return how many operations read each memory, by the memory's number."""
        return Counter(number for operation in self._operations for number in operation.reads)

    def peak_bytes(self) -> int:
        """Return the most bytes of tensors that exist at once.

        A tensor exists from the operation that creates the tensor to the last operation that reads the tensor.
        """
        last = {number: index for index, operation in enumerate(self._operations) for number in operation.reads}
        alive: dict[int, int] = {}
        peak = 0
        for index, operation in enumerate(self._operations):
            dying = [number for number in operation.reads if last[number] == index and number in alive]
            if operation.in_place:  # the output overwrites one input of equal size that is not read again
                for old in [number for number in dying if alive[number] in operation.writes.values()][:1]:
                    del alive[old]
            alive |= operation.writes
            peak = max(peak, sum(alive.values()))
            for number in dying:
                alive.pop(number, None)
        return peak


def storage(tensor: Tensor) -> int:
    """Return the number of a tensor's memory; all views of the same memory have the same number."""
    return int(tensor.untyped_storage()._cdata)
