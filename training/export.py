"""From a trained network to ONNX, pixels in and logits out."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import torch

from engines.preprocess import Preprocess
from engines.torch import FromPixels

OPSET = 20


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
