"""INT8 as a file: explicit Q/DQ pairs around convolutions and linear layers, everything else in float.

Symmetric, weights per channel, biases in float: what TensorRT takes, and OpenVINO too.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static

from engines.engine import in_batches

METHODS = {
    "minmax": CalibrationMethod.MinMax,
    "percentile": CalibrationMethod.Percentile,
}
LAYERS = ("Conv", "Gemm")


class Pixels(CalibrationDataReader):  # type: ignore[misc]
    """Pixels, (N, height, width, channels), by the batch."""

    def __init__(self, pixels: NDArray[np.uint8]) -> None:
        self._batches = in_batches(pixels)
        self.set_range(0, len(self))

    def __len__(self) -> int:
        return len(self._batches)

    def set_range(self, start_index: int, end_index: int) -> None:
        """Begin anew, with the batches of this range."""
        self._rest = iter(self._batches[start_index:end_index])

    def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
        """The next batch by the name of the graph's input, or None after the last."""
        batch = next(self._rest, None)
        return None if batch is None else {"pixels": batch}


def quantize(source: Path, out: Path, pixels: NDArray[np.uint8], method: str, in_float: tuple[str, ...]) -> None:
    """Write the graph `source` in INT8 to `out`, but for the layers `in_float`.

    The range of each activation is found on `pixels`, (N, height, width, channels), by `method`.
    """
    logging.disable(logging.WARNING)  # it advises on the root logger
    with redirect_stdout(None):  # and tells of each step
        quantize_static(
            source,
            out,
            Pixels(pixels),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=LAYERS,
            nodes_to_exclude=list(in_float),
            per_channel=True,
            activation_type=QuantType.QInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=METHODS[method],
            extra_options={
                "ActivationSymmetric": True,
                "WeightSymmetric": True,
                "QuantizeBias": False,
                "CalibStridedMinMax": 1,  # in every method: the activations of one batch at a time are in memory
            },
        )
    logging.disable(logging.NOTSET)


def layers(graph: Path) -> list[str]:
    """Names of the convolutions and linear layers of a graph, from the input on."""
    return [node.name for node in nodes_of(graph) if node.op_type in LAYERS]


def gates(graph: Path) -> list[str]:
    """Names of those that squeeze-and-excitation takes from an average to a sigmoid; empty where there is none."""
    nodes = nodes_of(graph)
    made_by = {output: node for node in nodes for output in node.output}
    found = []
    for sigmoid in (node for node in nodes if node.op_type == "Sigmoid"):
        node = made_by[sigmoid.input[0]]
        while node.op_type in ("Relu", *LAYERS):
            if node.op_type in LAYERS:
                found.append(node.name)
            node = made_by[node.input[0]]
    return found


def nodes_of(graph: Path) -> Sequence[onnx.NodeProto]:
    """Its operators, from the input on."""
    nodes: Sequence[onnx.NodeProto] = onnx.load(graph, load_external_data=False).graph.node
    return nodes
