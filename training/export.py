"""From a trained network to ONNX, pixels in and logits out."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from engines.preprocess import Preprocess
from training.train import Normalise

OPSET = 20


class FromPixels(nn.Module):
    """uint8 pixels, (N, height, width, channels), to float32 logits, the network between in its own precision.

    Layout and normalisation belong to the graph.
    """

    def __init__(self, net: nn.Module, normalise: Normalise) -> None:
        super().__init__()
        self.normalise = normalise
        self.net = net

    def forward(self, pixels: Tensor) -> Tensor:
        entry = self.normalise(pixels.permute(0, 3, 1, 2))
        logits: Tensor = self.net(entry.to(next(self.net.parameters()).dtype)).float()
        return logits


def export(module: FromPixels, preprocess: Preprocess, path: Path) -> None:
    """Write `module` as ONNX: input `pixels`, output `logits`, the batch free."""
    module.eval()
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
