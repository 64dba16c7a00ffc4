"""From a trained network to ONNX, pixels in and logits out."""

from __future__ import annotations

import copy
import logging
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from engines.preprocess import Preprocess
from engines.torch import FromPixels

OPSET = 20


class OneLRN(nn.Module):
    """Local response normalisation as ONNX's operator of that name.

    torch's own is exported as nine operators, whose power took two fifths of AlexNet's time in OpenVINO.
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


def export(module: FromPixels, preprocess: Preprocess, path: Path) -> None:
    """Write `module` as ONNX: input `pixels`, output `logits`, the batch free."""
    module = copy.deepcopy(module).eval()
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.LocalResponseNorm):
                setattr(parent, name, OneLRN(child))
    # two images: a batch of one would be taken for a constant
    example = torch.zeros(2, *preprocess.shape, dtype=torch.uint8)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own deprecations
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
