"""Graphs of lower precision: fp16 from the half-precision module, INT8 by calibration on training images."""

from __future__ import annotations

import copy
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
from numpy.typing import NDArray

from engines.manifest import Calibration
from engines.openvino import OpenVINOEngine
from engines.preprocess import Preprocess
from engines.quantize import METHODS, gates, layers, quantize
from engines.torch import FromPixels
from engines.verify import all_logits
from training.export import export

CALIBRATION_IMAGES = 320
AGREEMENT = 0.995  # of calibration images with the same top-1 as in float, to be content with a way of calibrating


def export_half(module: FromPixels, preprocess: Preprocess, path: Path) -> None:
    """Write the graph with weights and activations in float16; pixels are normalised, and logits given, in float32."""
    half = copy.deepcopy(module)
    half.net.half()
    export(half, preprocess, path)


def export_int8(source: Path, path: Path, pixels: NDArray[np.uint8]) -> Calibration:
    """Write the graph `source` in INT8 to `path`, in the first of several ways that gives its answers.

    `pixels`, (N, height, width, channels), are of training images. Tried are ranges by least and most, and by
    percentile; then with the first and the last layer in float; then with the layers of squeeze-and-excitation in float
    too, where it has some. If none is good, the best is taken: verification tells what it is worth.
    """
    expected = all_logits(OpenVINOEngine(source, "fp32"), pixels).argmax(1)
    best = -1.0
    with TemporaryDirectory(dir=path.parent) as folder:
        for (what, in_float), method in product(ways(source).items(), METHODS):
            tried = Path(folder) / "tried.onnx"
            quantize(source, tried, pixels, method, in_float, Path(folder) / f"{method}.json")
            agreement = float((all_logits(OpenVINOEngine(tried, "int8"), pixels).argmax(1) == expected).mean())
            print(f"int8 by {method}, {what}: answers {agreement:.1%} of {len(pixels)} images as fp32 does", flush=True)
            if agreement > best:
                best = agreement
                tried.replace(path)
                calibration = Calibration(images=len(pixels), method=method, in_float=in_float)
            if agreement >= AGREEMENT:
                break
    return calibration


def ways(source: Path) -> dict[str, tuple[str, ...]]:
    """Which layers of the graph `source` to leave in float, in the order to be tried."""
    graph = onnx.load(source, load_external_data=False).graph
    names, excitation = layers(graph), gates(graph)
    ends = (names[0], names[-1])
    return {"every layer": (), "but for the first and the last layer": ends} | (
        {"but for those and squeeze-and-excitation": (*ends, *excitation)} if excitation else {}
    )
