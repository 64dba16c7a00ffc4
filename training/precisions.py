"""Graphs of lower precision: fp16 from the half-precision module, INT8 by calibration on training images."""

from __future__ import annotations

import copy
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
from numpy.typing import NDArray

from engines.measured.verify import all_logits
from engines.published.graph import gates, layers
from engines.published.manifest import Calibration
from engines.published.preprocess import Preprocess
from engines.runtimes.openvino import OpenVINOEngine
from engines.runtimes.torch import FromPixels
from training.export import export
from training.quantize import METHODS, quantize

CALIBRATION_IMAGES = 320
AGREEMENT = 0.995  # of calibration images with the same top-1 as in float, to be content with a way of calibrating


def export_half(module: FromPixels, preprocess: Preprocess, path: Path) -> None:
    """Write the graph with weights and activations in float16; pixels are normalised, and logits given, in float32."""
    half = copy.deepcopy(module)
    half.net.half()
    export(half, preprocess, path)


def export_int8(source: Path, path: Path, pixels: NDArray[np.uint8]) -> Calibration:
    """Write the graph `source` in INT8 to `path`, in the first of several ways that gives its answers.

    `pixels`, (N, height, width, channels), are of training images. If no way is good, the best is taken: verification
    tells what it is worth.
    """
    expected = all_logits(OpenVINOEngine(source, "fp32"), pixels).argmax(1)
    best = -1.0
    with TemporaryDirectory(dir=path.parent) as folder:
        for way in ways(source, len(pixels)):
            tried = Path(folder) / "tried.onnx"
            quantize(source, tried, pixels, way, Path(folder) / f"{way.method}.json")
            agreement = float((all_logits(OpenVINOEngine(tried, "int8"), pixels).argmax(1) == expected).mean())
            in_float = f"{'outputs and ' if way.outputs_in_float else ''}{len(way.in_float)} layers in float"
            print(
                f"by {way.method}, {in_float}: answers {agreement:.1%} of {len(pixels)} images as fp32 does", flush=True
            )
            if agreement > best:
                best = agreement
                tried.replace(path)
                calibration = way
            if agreement >= AGREEMENT:
                break
    return calibration


def ways(source: Path, images: int) -> list[Calibration]:
    """In the order to be tried: all of the graph `source` in INT8, then less and less of it, by either method each.

    In float are first what layers give, then the first and the last layer too, then those of squeeze-and-excitation.
    """
    graph = onnx.load(source, load_external_data=False).graph
    names, excitation = layers(graph), gates(graph)
    ends = (names[0], names[-1])
    steps = [(False, ()), (True, ()), (True, ends), *([(True, (*ends, *excitation))] if excitation else [])]
    return [
        Calibration(images=images, method=method, outputs_in_float=outputs, in_float=in_float)
        for (outputs, in_float), method in product(steps, METHODS)
    ]
