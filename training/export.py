"""Export of a trained network to ONNX, from pixels to logits."""

from __future__ import annotations

import copy
import logging
import warnings
from pathlib import Path
from typing import Any

import onnx_ir
import torch
from torch import Tensor, nn

from engines.published.preprocess import Preprocess
from engines.runtimes.torch import FromPixels
from training.graphs import refer_to_weights

OPSET = 20
UNFOLDED = "convserve"  # domain that hides batch norms from the exporter's optimiser, which would fold them


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


class OneBatchNorm(nn.Module):
    """Batch normalisation as ONNX's operator of that name, with the tensors of the layer that it replaces."""

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        self.attributes: dict[str, Any] = {"epsilon": norm.eps}
        self.weight, self.bias = norm.weight, norm.bias
        self.register_buffer("running_mean", norm.running_mean)
        self.register_buffer("running_var", norm.running_var)

    def forward(self, x: Tensor) -> Tensor:
        tensors = x, self.weight, self.bias, self.get_buffer("running_mean"), self.get_buffer("running_var")
        operator = f"{UNFOLDED}::BatchNormalization"
        return torch.onnx.ops.symbolic(operator, tensors, self.attributes, dtype=x.dtype, shape=x.shape)


def export(module: FromPixels, preprocess: Preprocess, path: Path, weights: Path | None = None) -> None:
    """Write `module` as ONNX to `path`: input `pixels`, output `logits`, any batch size.

    With `weights`, the safetensors file of the network in the folder of `path`, the graph refers to this file's
    tensors, and keeps batch norms as they are. Without, the graph holds its weights, and batch norms are folded into
    the layers before them.
    """
    module = copy.deepcopy(module).eval()
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.LocalResponseNorm):
                setattr(parent, name, OneLRN(child))
            elif isinstance(child, nn.MaxPool2d) and child.ceil_mode:
                setattr(parent, name, PaddedMaxPool(child))
            elif isinstance(child, nn.BatchNorm2d) and weights:
                setattr(parent, name, OneBatchNorm(child))
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
    model = program.model
    for node in model.graph:
        node.metadata_props.clear()  # stack traces, with the folders of this machine
        if node.domain == UNFOLDED:
            node.domain = ""
    model.graph.opset_imports.pop(UNFOLDED, None)
    if weights:
        refer_to_weights(model, weights)
    onnx_ir.save(model, path)
