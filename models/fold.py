"""Folding of batch norms into the convolutions before them, for inference.

In inference a batch norm multiplies each channel by a constant and adds another one. A convolution whose output is read
by nothing else does both with other weights, and the output is written once instead of twice.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from models.dataflow import Dataflow, storage


@torch.no_grad()
def fold_batch_norms(net: nn.Module, input_shape: tuple[int, int, int]) -> None:
    """Fold batch norms of a network in inference mode into its convolutions, in the precision of the weights.

    A batch norm is folded if it is the only reader of a convolution's output. Others stay as they are: those that
    follow a concatenation or an addition, as in DenseNets and before the blocks of pre-activation ResNets.
    """
    for conv, norm in foldable(net, input_shape):
        fused: nn.Module = fuse_conv_bn_eval(net.get_submodule(conv), net.get_submodule(norm))  # type: ignore[type-var, arg-type]
        net.set_submodule(conv, fused)
        net.set_submodule(norm, nn.Identity())


def foldable(net: nn.Module, input_shape: tuple[int, int, int]) -> list[tuple[str, str]]:
    """Return the names of each convolution and batch norm to fold, found by a pass on torch's meta device.

    The pass computes shapes alone. Modules that run more than once are left out.
    """
    calls: Counter[str] = Counter()
    convolved: dict[int, str] = {}  # convolution by the memory of its output
    pairs: dict[int, tuple[str, str]] = {}  # the same of those that a batch norm reads

    def watch(name: str, module: nn.Module) -> Any:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            calls[name] += 1
            memory = storage(inputs[0])
            if isinstance(module, nn.Conv2d):
                convolved[storage(output)] = name
            elif memory in convolved:
                pairs[memory] = convolved[memory], name

        return module.register_forward_hook(hook)

    watched = [item for item in net.named_modules() if isinstance(item[1], nn.Conv2d | nn.BatchNorm2d)]
    handles = [watch(*item) for item in watched]
    tensors = {**dict(net.named_parameters()), **dict(net.named_buffers())}
    on_meta = {name: torch.empty_like(tensor, device="meta") for name, tensor in tensors.items()}
    with torch.device("meta"):
        x = torch.empty(1, *input_shape)
        dataflow = Dataflow(x)
        with dataflow:
            torch.func.functional_call(net, on_meta, (x,))
    for handle in handles:
        handle.remove()
    reads = dataflow.reads()
    return [pair for memory, pair in pairs.items() if reads[memory] == calls[pair[0]] == calls[pair[1]] == 1]
