"""INT8 graphs by calibration on training images."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
from numpy.typing import NDArray

from engines.measured.verify import all_logits
from engines.published.graph import gates, layers
from engines.published.manifest import Calibration
from engines.runtimes.openvino import OpenVINOEngine
from training.quantize import METHODS, quantize

CALIBRATION_IMAGES = 320
AGREEMENT = 0.995  # share of calibration images with the same top-1 as in fp32 that a calibration must reach


def export_int8(source: Path, path: Path, pixels: NDArray[np.uint8]) -> Calibration:
    """Write the graph `source` in INT8 to `path`; return the first calibration that agrees with fp32.

    `pixels`, (N, height, width, channels), come from training images. If no calibration agrees well enough, the best is
    used: verification reports its error.
    """
    expected = all_logits(OpenVINOEngine(source, "fp32"), pixels).argmax(1)
    best = -1.0
    with TemporaryDirectory(dir=path.parent) as folder:
        for calibration in calibrations(source, len(pixels)):
            candidate = Path(folder) / "candidate.onnx"
            quantize(source, candidate, pixels, calibration, Path(folder) / f"{calibration.method}.json")
            agreement = float((all_logits(OpenVINOEngine(candidate, "int8"), pixels).argmax(1) == expected).mean())
            outputs = "outputs and " if calibration.outputs_in_float else ""
            print(
                f"calibrated by {calibration.method}, {outputs}{len(calibration.in_float)} layers in float: "
                f"top-1 of {agreement:.1%} of {len(pixels)} images as in fp32",
                flush=True,
            )
            if agreement > best:
                best = agreement
                candidate.replace(path)
                chosen = calibration
            if agreement >= AGREEMENT:
                break
    return chosen


def calibrations(source: Path, images: int) -> list[Calibration]:
    """Return calibrations in the order of trial: all of the graph `source` in INT8, then ever less, by each method.

    First the layers' outputs stay in float, then the first and the last layer too, then the layers of
    squeeze-and-excitation.
    """
    graph = onnx.load(source, load_external_data=False).graph
    names, excitation = layers(graph), gates(graph)
    ends = (names[0], names[-1])
    steps = [(False, ()), (True, ()), (True, ends), *([(True, (*ends, *excitation))] if excitation else [])]
    return [
        Calibration(images=images, method=method, outputs_in_float=outputs, in_float=in_float)
        for (outputs, in_float), method in product(steps, METHODS)
    ]
