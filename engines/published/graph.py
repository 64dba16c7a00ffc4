"""Weighted layers of an ONNX graph: the layers that INT8 files quantise and that inspections of engines list."""

from __future__ import annotations

import onnx

LAYERS = ("Conv", "Gemm")
AVERAGES = ("GlobalAveragePool", "ReduceMean")


def layers(graph: onnx.GraphProto) -> list[str]:
    """Return the names of a graph's convolutions and linear layers, from the input on."""
    return [node.name for node in graph.node if node.op_type in LAYERS]


def gates(graph: onnx.GraphProto) -> list[str]:
    """Return the names of squeeze-and-excitation layers: the layers between a mean over the map and a sigmoid."""
    producers = {output: node for node in graph.node for output in node.output}
    names: set[str] = set()
    for sigmoid in (node for node in graph.node if node.op_type == "Sigmoid"):
        chain = []
        node = producers.get(sigmoid.input[0])
        while node and node.op_type in ("Relu", "Flatten", "Reshape", *LAYERS):
            chain.append(node.name)
            node = producers.get(node.input[0])
        if node and node.op_type in AVERAGES:
            names.update(chain)
    return [name for name in layers(graph) if name in names]
