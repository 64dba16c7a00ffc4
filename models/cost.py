"""Costs of a forward pass, as plain data that needs no torch.

MACs are the multiply-accumulates of convolutions and linear layers; activations are the output elements of the same
layers (the definition of RegNet, arXiv:2003.13678). All counts are for one image, in inference.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

FLOAT_BYTES = 4  # all bytes are counted at float32
# Pydantic reads these classes in files and in HTTP bodies: an unknown key is an error.
STRICT: Any = {"extra": "forbid"}


@dataclass(frozen=True, kw_only=True)
class LayerCost:
    """Cost of one layer; `output_shape` is without the batch.

    `kernel` is (height, width), or None for a layer without a window. `receptive_field`, (height, width), counts the
    input pixels that one output depends on, including padding around the picture.
    """

    __pydantic_config__: ClassVar[Any] = STRICT

    name: str
    type: str
    kernel: tuple[int, int] | None
    output_shape: tuple[int, ...]
    receptive_field: tuple[int, int]
    params: int
    macs: int
    activations: int
    param_bytes: int
    input_bytes: int
    output_bytes: int


@dataclass(frozen=True, kw_only=True)
class Totals:
    """Cost of a whole network at one input shape (channels, height, width).

    `peak_bytes` is the largest total size of tensors that exist at once, including the input and excluding weights;
    elementwise operations count as done in place. `intensity` is floating-point operations, two per MAC, per byte that
    convolutions and linear layers move: weights, inputs and outputs.
    """

    __pydantic_config__: ClassVar[Any] = STRICT

    input_shape: tuple[int, int, int]
    classes: int
    params: int
    macs: int
    activations: int
    param_bytes: int
    peak_bytes: int
    intensity: float


@dataclass(frozen=True, kw_only=True)
class Complexity(Totals):
    """Cost of a whole network, in total and layer by layer."""

    layers: tuple[LayerCost, ...]
