"""What a forward pass costs, layer by layer.

MACs are the multiply-accumulates of convolutions and linear layers; activations are the elements these put
out (the definition of RegNet, arXiv:2003.13678); bytes are at float32. Counted for one image.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from models.card import Architecture

FLOAT_BYTES = 4


@dataclass(frozen=True, kw_only=True)
class LayerCost:
    """One layer; `output_shape` is without the batch."""

    name: str
    type: str
    output_shape: tuple[int, ...]
    params: int
    macs: int
    activations: int
    param_bytes: int
    output_bytes: int


@dataclass(frozen=True, kw_only=True)
class Complexity:
    """A whole network at one input shape (channels, height, width)."""

    input_shape: tuple[int, int, int]
    classes: int
    params: int
    macs: int
    activations: int
    param_bytes: int
    layers: tuple[LayerCost, ...]


def complexity(
    architecture: Architecture, input_shape: tuple[int, int, int] | None = None, classes: int | None = None
) -> Complexity:
    """Cost of `architecture` at the paper's input and classes, or at those given; computed without memory, on meta."""
    shape, classes = input_shape or architecture.input_shape, classes or architecture.classes
    with torch.device("meta"):
        net = architecture.build(classes).eval()
        layers = trace(net, torch.empty(1, *shape))
    params = sum(layer.params for layer in layers)
    return Complexity(
        input_shape=shape,
        classes=classes,
        params=params,
        macs=sum(layer.macs for layer in layers),
        activations=sum(layer.activations for layer in layers),
        param_bytes=params * FLOAT_BYTES,
        layers=layers,
    )


def trace(net: nn.Module, x: Tensor) -> tuple[LayerCost, ...]:
    """The layers that `x` passes, in order: those that hold parameters or change the shape of what they take."""
    layers: list[LayerCost] = []

    def record(name: str) -> Callable[[nn.Module, tuple[Any, ...], Tensor], None]:
        def hook(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
            if list(module.parameters(recurse=False)) or output.shape != inputs[0].shape:
                layers.append(layer_cost(name, module, output))

        return hook

    leaves = [(name, module) for name, module in net.named_modules() if not list(module.children())]
    handles = [module.register_forward_hook(record(name)) for name, module in leaves]
    with torch.no_grad():
        net(x)
    for handle in handles:
        handle.remove()
    return tuple(layers)


def layer_cost(name: str, module: nn.Module, output: Tensor) -> LayerCost:
    """The cost of one leaf module that put out `output`, (1, ...)."""
    params = sum(parameter.numel() for parameter in module.parameters())
    # every output element of these is one dot product with a row of the weight, (outputs, ...)
    macs = output.numel() * module.weight[0].numel() if isinstance(module, nn.Conv2d | nn.Linear) else 0
    return LayerCost(
        name=name,
        type=type(module).__name__,
        output_shape=tuple(output.shape[1:]),
        params=params,
        macs=macs,
        activations=output.numel() if macs else 0,
        param_bytes=params * FLOAT_BYTES,
        output_bytes=output.numel() * FLOAT_BYTES,
    )
