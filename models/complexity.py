"""Cost of a forward pass, layer by layer.

MACs are the multiply-accumulates of convolutions and linear layers; activations are the output elements of the same
layers (the definition of RegNet, arXiv:2003.13678). Counts are for one image in inference; bytes are at float32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from models.card import Architecture
from models.cost import FLOAT_BYTES, Complexity, LayerCost
from models.dataflow import Dataflow


def complexity(
    architecture: Architecture, input_shape: tuple[int, int, int] | None = None, classes: int | None = None
) -> Complexity:
    """Return the cost of `architecture` at the paper's input and classes, unless others are passed.

    The pass runs on torch's meta device, which computes shapes without allocating memory.
    """
    shape, classes = input_shape or architecture.input_shape, classes or architecture.classes
    with torch.device("meta"):
        net = architecture.build(classes).eval()
        layers, peak_bytes = trace(net, torch.empty(1, *shape))
    params = sum(layer.params for layer in layers)
    macs = sum(layer.macs for layer in layers)
    moved = sum(layer.param_bytes + layer.input_bytes + layer.output_bytes for layer in layers if layer.macs)
    return Complexity(
        input_shape=shape,
        classes=classes,
        params=params,
        macs=macs,
        activations=sum(layer.activations for layer in layers),
        param_bytes=params * FLOAT_BYTES,
        peak_bytes=peak_bytes,
        intensity=round(2 * macs / moved, 2),
        layers=layers,
    )


def depth(architecture: Architecture) -> int:
    """Return the number of convolutions and linear layers on the longest path, as papers count them."""
    with torch.device("meta"), torch.no_grad():
        net, x = architecture.build(architecture.classes).eval(), torch.empty(1, *architecture.input_shape)
        with Dataflow(x) as dataflow:
            output: Tensor = net(x)
        layers: int = dataflow.depth(output)
    return layers


def trace(net: nn.Module, x: Tensor) -> tuple[tuple[LayerCost, ...], int]:
    """Return the costs of the layers that `x` passes, in order, and the peak of memory in bytes.

    A layer is a module that has parameters, moves a window over its input, changes the shape, or normalises.
    """
    layers: list[LayerCost] = []
    dataflow = Dataflow(x)

    def record(name: str) -> Callable[[nn.Module, tuple[Any, ...], Tensor], None]:
        def hook(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
            changes_shape = output.shape != inputs[0].shape and not isinstance(module, nn.Flatten)
            if changes_shape or kernel(module) or is_norm(module) or list(module.parameters(recurse=False)):
                field = dataflow.receptive_field(output)
                layers.append(layer_cost(name, module, inputs[0], output, field))

        return hook

    leaves = [(name, module) for name, module in net.named_modules() if not list(module.children())]
    handles = [module.register_forward_hook(record(name)) for name, module in leaves]
    # torch computes a response norm in several operations; engines run a single one.
    norms = [module for _, module in leaves if is_norm(module)]
    starts: list[int] = []
    handles += [module.register_forward_pre_hook(lambda *_: starts.append(dataflow.start())) for module in norms]
    handles += [
        module.register_forward_hook(lambda _, x, out: dataflow.join(starts.pop(), x[0], out)) for module in norms
    ]
    with torch.no_grad(), dataflow:
        net(x)
    for handle in handles:
        handle.remove()
    return tuple(layers), dataflow.peak_bytes()


def is_norm(module: nn.Module) -> bool:
    """Return True for a local response normalisation."""
    return isinstance(module, nn.LocalResponseNorm)


def layer_cost(name: str, module: nn.Module, x: Tensor, output: Tensor, receptive_field: tuple[int, int]) -> LayerCost:
    """Return the cost of one leaf module that returned `output`, (1, ...), for `x`."""
    params = sum(parameter.numel() for parameter in module.parameters())
    # Every output element of these layers is one dot product with a row of the weight, (outputs, ...).
    macs = output.numel() * module.weight[0].numel() if isinstance(module, nn.Conv2d | nn.Linear) else 0
    return LayerCost(
        name=name,
        type=type(module).__name__,
        kernel=kernel(module),
        output_shape=tuple(output.shape[1:]),
        receptive_field=receptive_field,
        params=params,
        macs=macs,
        activations=output.numel() if macs else 0,
        param_bytes=params * FLOAT_BYTES,
        input_bytes=x.numel() * FLOAT_BYTES,
        output_bytes=output.numel() * FLOAT_BYTES,
    )


def kernel(module: nn.Module) -> tuple[int, int] | None:
    """Return height and width of the window that a convolution or pool moves over its input, or None."""
    size = getattr(module, "kernel_size", None)
    return (size, size) if isinstance(size, int) else size
