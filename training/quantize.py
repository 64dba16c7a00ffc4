"""INT8 graphs: explicit Q/DQ pairs around convolutions and linear layers, everything else in float16.

Quantisation is symmetric, weights are per channel, biases in float16: TensorRT and OpenVINO both accept such graphs.
"""

from __future__ import annotations

import logging
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static

from engines.published.graph import LAYERS
from engines.published.manifest import Calibration
from training.graphs import halve
from training.scales import share_scales

CALIBRATION_BATCH = 8  # images; the activations of all layers are in memory for that many at a time
METHODS = {
    "minmax": CalibrationMethod.MinMax,
    "percentile": CalibrationMethod.Percentile,
}


class Pixels(CalibrationDataReader):  # type: ignore[misc]
    """Batches of pixels, (N, height, width, channels), each with images from the whole set.

    The first batch decides the width of a histogram's bins, and images can be sorted by class.
    """

    def __init__(self, pixels: NDArray[np.uint8]) -> None:
        count = -(-len(pixels) // CALIBRATION_BATCH)
        self._batches = [pixels[start::count] for start in range(count)]
        self.set_range(0, count)

    def __len__(self) -> int:
        return len(self._batches)

    def set_range(self, start_index: int, end_index: int) -> None:
        """Restart the iteration with the batches from `start_index` to before `end_index`."""
        self._rest = iter(self._batches[start_index:end_index])

    def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
        """Return the next batch by the name of the graph's input, or None after the last."""
        batch = next(self._rest, None)
        return None if batch is None else {"pixels": batch}


def quantize(source: Path, out: Path, pixels: NDArray[np.uint8], calibration: Calibration, ranges: Path) -> None:
    """Write the graph `source` in INT8 to `out`.

    The range of each activation is read from the file `ranges`. If the file is missing, ranges are measured on
    `pixels`, (N, height, width, channels), and written to the file.
    """
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)  # onnxruntime logs advice on the root logger
    try:
        with redirect_stdout(None):  # and prints each step
            quantize_static(
                source,
                out,
                Pixels(pixels),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=LAYERS,
                nodes_to_exclude=list(calibration.in_float),
                per_channel=True,
                activation_type=QuantType.QInt8,
                weight_type=QuantType.QInt8,
                calibrate_method=METHODS[calibration.method],
                calibration_cache_path=ranges,
                extra_options={
                    "ActivationSymmetric": True,
                    "WeightSymmetric": True,
                    "QuantizeBias": False,
                    # A pair per layer: OpenVINO errs in average pooling whose input is the output of a layer's pair.
                    "DedicatedQDQPair": True,
                    "OpTypesToExcludeOutputQuantization": LAYERS if calibration.outputs_in_float else (),
                    "CalibStridedMinMax": 1,  # holds one batch's activations at a time, with every method
                },
            )
    finally:
        logging.disable(before)
    share_scales(out)
    halve(out, out)
