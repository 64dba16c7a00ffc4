"""Scales of INT8 weights, moved from each layer to a multiplication after the layer.

TensorRT for RTX 1.7 multiplies by the scale of INT8 weights within a convolution only if all channels share one scale;
with a scale per channel the convolution writes float32, even in a float16 graph. So the weights of a layer share one
scale here, and a Mul after the layer applies the scale of each channel. TensorRT computes the Mul together with the
bias, ReLU, addition and quantisation that follow. The numbers that a layer computes stay the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from engines.published.graph import LAYERS

QUANTISING = ("QuantizeLinear", "DequantizeLinear")
LARGEST = 1024  # bound of what a layer returns before the Mul: float16 ends at 65,504
SMALLEST = 2.0**-14  # smallest normal number of float16


def share_scales(path: Path) -> None:
    """Rewrite an INT8 graph so that the weights of a layer share one scale, and no scale is too small for float16."""
    model = onnx.load(path)
    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    producers = {output: node for node in graph.node for output in node.output}
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        nodes.append(node)
        if node.op_type in LAYERS and (weights := producers.get(node.input[1])):
            step = numpy_helper.to_array(constants[producers[node.input[0]].input[1]])
            nodes += after(node, weights, float(step), constants)
    for name in {node.input[1] for node in nodes if node.op_type in QUANTISING}:
        scale = numpy_helper.to_array(constants[name])
        constants[name] = numpy_helper.from_array(np.maximum(scale, np.float32(SMALLEST)), name)
    used = {name for node in nodes for name in node.input}
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend(tensor for name, tensor in constants.items() if name in used)
    onnx.save(model, path)


def after(
    layer: onnx.NodeProto, weights: onnx.NodeProto, step: float, constants: dict[str, onnx.TensorProto]
) -> Iterator[onnx.NodeProto]:
    """Edit a layer and its `weights`, a DequantizeLinear, and yield the nodes that follow the layer: Mul and Add.

    `step` is the scale of the layer's input. New constants are added to `constants`.
    """

    def constant(suffix: str, value: NDArray[np.generic] | np.generic) -> str:
        name = f"{layer.name}_{suffix}"
        constants[name] = numpy_helper.from_array(np.asarray(value), name)
        return name

    quantised, scales = (numpy_helper.to_array(constants[name]) for name in weights.input[:2])
    sums = np.abs(quantised.astype(np.int64)).reshape(len(quantised), -1).sum(1)
    shared = 2.0 ** np.floor(np.log2(LARGEST / (127 * step * max(sums.max(), 1))))
    shared = min(max(shared, SMALLEST), 1.0)
    weights.input[1:] = [constant("scale", np.float32(shared)), constant("zero", np.int8(0))]
    del weights.attribute[:]  # the axis of channels
    shape = (1, -1, 1, 1) if layer.op_type == "Conv" else (1, -1)
    channels = constant("channels", (scales / np.float32(shared)).reshape(shape))
    bias = layer.input.pop() if len(layer.input) > 2 else None
    result, layer.output[0] = layer.output[0], f"{layer.name}_shared"
    scaled = f"{layer.name}_scaled" if bias else result
    yield helper.make_node("Mul", [layer.output[0], channels], [scaled], f"{layer.name}_Mul")
    if bias:
        added = constant("bias", numpy_helper.to_array(constants[bias]).reshape(shape))
        yield helper.make_node("Add", [scaled, added], [result], f"{layer.name}_Add")
