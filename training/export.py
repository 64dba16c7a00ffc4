"""Export of a trained network to ONNX, from pixels to logits."""

from __future__ import annotations

import copy
import logging
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from engines.published.preprocess import Preprocess
from engines.runtimes.torch import FromPixels

OPSET = 20


class OneLRN(nn.Module):
    """Local response normalisation as ONNX's operator of that name.

    torch exports its own layer as nine operators, whose power took two fifths of AlexNet's time in OpenVINO.
    """

    def __init__(self, norm: nn.LocalResponseNorm) -> None:
        super().__init__()
        self.attributes: dict[str, Any] = {
            "alpha": norm.alpha,
            "beta": norm.beta,
            "bias": float(norm.k),
            "size": norm.size,
        }

    def forward(self, x: Tensor) -> Tensor:
        return torch.onnx.ops.symbolic("LRN", (x,), self.attributes, dtype=x.dtype, shape=x.shape)


class PaddedMaxPool(nn.Module):
    """Max pooling with padding at the far edges, which replaces `ceil_mode`.

    ONNX has `ceil_mode` too, but OpenVINO refuses it on maps smaller than the window.
    """

    def __init__(self, pool: nn.MaxPool2d) -> None:
        super().__init__()
        kernel, stride = pool.kernel_size, pool.stride
        assert isinstance(kernel, int)
        assert isinstance(stride, int)
        assert stride <= kernel
        assert (pool.padding, pool.dilation, pool.return_indices) == (0, 1, False)
        self.kernel, self.stride = kernel, stride

    def forward(self, x: Tensor) -> Tensor:
        edges = x.shape[2:]
        sizes = [-((self.kernel - edge) // self.stride) + 1 for edge in edges]  # rounded up
        beyond = [(size - 1) * self.stride + self.kernel - edge for size, edge in zip(sizes, edges, strict=True)]
        attributes: dict[str, Any] = {
            "kernel_shape": [self.kernel] * 2,
            "strides": [self.stride] * 2,
            "pads": [0, 0, *beyond],
        }
        return torch.onnx.ops.symbolic("MaxPool", (x,), attributes, dtype=x.dtype, shape=(*x.shape[:2], *sizes))


def export(module: FromPixels, preprocess: Preprocess, path: Path) -> None:
    """Write `module` as ONNX to `path`: input `pixels`, output `logits`, any batch size."""
    module = copy.deepcopy(module).eval()
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.LocalResponseNorm):
                setattr(parent, name, OneLRN(child))
            elif isinstance(child, nn.MaxPool2d) and child.ceil_mode:
                setattr(parent, name, PaddedMaxPool(child))
    # The example has two images because the exporter takes a batch of one for a constant. Its strides are such that
    # the network sees NCHW: for other strides global pooling is exported with a Gather.
    height, width, channels = preprocess.shape
    example = torch.zeros(2, channels, height, width, dtype=torch.uint8).permute(0, 2, 3, 1)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations inside the exporter
        program = torch.onnx.export(
            module,
            (example,),
            input_names=["pixels"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    program.save(path, include_initializers=True)
