"""OpenVINO engine of a network with its class activation maps, made of the published graph when it is opened."""

from __future__ import annotations

from pathlib import Path

import openvino
from openvino import opset13 as ops

from engines.published.maps import MAPS
from engines.runtimes.engine import EngineError
from engines.runtimes.openvino import OpenVINOEngine, core

PAIRS = ("Add", "Multiply")  # operations whose other input is a constant: a bias, and a Gemm's factor
SAME = ("Convert", "Reshape", "Squeeze")  # operations that keep the values of their first input
SPATIAL = {2, 3}  # axes of (N, channels, height, width)
VERSION = 1  # of how the maps are made; with another one no engine of the cache is loaded


class MapsEngine(OpenVINOEngine):
    """Engine in fp32 that returns each image's logits and, after the logits, the maps of all classes.

    `infer` returns (N, classes + cells * classes): the logits, then for each cell of the grid, row by row, the
    contribution of the cell to each class. The mean of a class's contributions is its logit without the bias.
    """

    def __init__(self, onnx: Path, *, sha256: str) -> None:
        """Compile the fp32 graph `onnx`, whose checksum is `sha256`, or load the compiled one from the cache.

        Raises EngineError if the graph does not end in global pooling, with at most one linear layer after it.
        """
        super().__init__(onnx, "fp32", sha256=f"{sha256} with maps {VERSION}")
        self.precision = MAPS

    @staticmethod
    def source(onnx: Path) -> openvino.Model:
        """Return the published graph with maps."""
        return with_maps(core().read_model(onnx))


def with_maps(graph: openvino.Model) -> openvino.Model:
    """Return a graph whose only output is the logits and the maps of `graph`, a row for each image.

    The linear layer is applied to each cell, where `graph` applies it to the mean of all cells.
    """
    logits = graph.get_results()[0].input_value(0)
    features, linear = before_pooling(logits)
    maps = ops.transpose(features, [0, 2, 3, 1])  # (N, height, width, channels)
    if linear is not None:
        maps = ops.matmul(maps, linear.input_value(1), False, linear.get_attributes()["transpose_b"])
    rows = ops.reshape(maps, [0, -1], True)
    return openvino.Model([ops.concat([logits, rows], 1)], graph.get_parameters())


def before_pooling(logits: openvino.Output) -> tuple[openvino.Output, openvino.Node | None]:
    """Return the input of the global pooling, (N, channels, height, width), and the linear layer after the pooling.

    Raises EngineError if anything else lies between the pooling and the logits.
    """
    linear, value = None, logits
    while (node := value.get_node()).get_type_name() != "ReduceMean":
        kind = node.get_type_name()
        if kind == "MatMul" and linear is None:
            linear, value = node, node.input_value(0)
        elif kind in SAME:
            value = node.input_value(0)
        elif kind in PAIRS:
            value = next(value for value in node.input_values() if value.get_node().get_type_name() != "Constant")
        else:
            raise EngineError(f"a graph that ends in {kind} has no class activation maps")
    if not is_global(node):
        raise EngineError(
            "a graph that ends in a mean of other axes than height and width has no class activation maps"
        )
    return node.input_value(0), linear


def is_global(mean: openvino.Node) -> bool:
    """Return True if a ReduceMean is over height and width. OpenVINO makes a Range of the axes of a global pooling."""
    axes, rank = mean.input_value(1).get_node(), len(mean.get_input_partial_shape(0))
    if axes.get_type_name() == "Range":
        return True
    return axes.get_type_name() == "Constant" and {axis % rank for axis in axes.data.ravel().tolist()} == SPATIAL
