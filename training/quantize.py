"""INT8 as a file: explicit Q/DQ pairs around convolutions and linear layers, everything else in float.

Symmetric, weights per channel, biases in float: what TensorRT takes, and OpenVINO too.
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

CALIBRATION_BATCH = 8  # images whose activations, of every layer, are in memory at a time
METHODS = {
    "minmax": CalibrationMethod.MinMax,
    "percentile": CalibrationMethod.Percentile,
}


class Pixels(CalibrationDataReader):  # type: ignore[misc]
    """Pixels, (N, height, width, channels), by the batch, each of images from all over.

    A histogram's bins are as wide as the first batch asks for, and images may be sorted by class.
    """

    def __init__(self, pixels: NDArray[np.uint8]) -> None:
        count = -(-len(pixels) // CALIBRATION_BATCH)
        self._batches = [pixels[start::count] for start in range(count)]
        self.set_range(0, count)

    def __len__(self) -> int:
        return len(self._batches)

    def set_range(self, start_index: int, end_index: int) -> None:
        """Begin anew, with the batches of this range."""
        self._rest = iter(self._batches[start_index:end_index])

    def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
        """The next batch by the name of the graph's input, or None after the last."""
        batch = next(self._rest, None)
        return None if batch is None else {"pixels": batch}


def quantize(source: Path, out: Path, pixels: NDArray[np.uint8], how: Calibration, ranges: Path) -> None:
    """Write the graph `source` in INT8 to `out`.

    The range of each activation is read from the file `ranges`; if there is none, it is found on `pixels`, (N, height,
    width, channels), and the file is written.
    """
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)  # it advises on the root logger
    try:
        with redirect_stdout(None):  # and tells of each step
            quantize_static(
                source,
                out,
                Pixels(pixels),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=LAYERS,
                nodes_to_exclude=list(how.in_float),
                per_channel=True,
                activation_type=QuantType.QInt8,
                weight_type=QuantType.QInt8,
                calibrate_method=METHODS[how.method],
                calibration_cache_path=ranges,
                extra_options={
                    "ActivationSymmetric": True,
                    "WeightSymmetric": True,
                    "QuantizeBias": False,
                    # each layer has its own: OpenVINO errs in average pooling that takes what a layer's pair gives
                    "DedicatedQDQPair": True,
                    "OpTypesToExcludeOutputQuantization": LAYERS if how.outputs_in_float else (),
                    "CalibStridedMinMax": 1,  # in every method: the activations of one batch at a time are in memory
                },
            )
    finally:
        logging.disable(before)
