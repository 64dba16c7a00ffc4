"""Weighted layers of an ONNX graph, which INT8 files quantise and engines are inspected by."""

from __future__ import annotations

import onnx

LAYERS = ("Conv", "Gemm")
AVERAGES = ("GlobalAveragePool", "ReduceMean")


def layers(graph: onnx.GraphProto) -> list[str]:
    """Names of the convolutions and linear layers of a graph, from the input on."""
    return [node.name for node in graph.node if node.op_type in LAYERS]


def gates(graph: onnx.GraphProto) -> list[str]:
    """Names of those that squeeze-and-excitation has between an average over the map and a sigmoid."""
    made_by = {output: node for node in graph.node for output in node.output}
    found: set[str] = set()
    for sigmoid in (node for node in graph.node if node.op_type == "Sigmoid"):
        chain = []
        node = made_by.get(sigmoid.input[0])
        while node and node.op_type in ("Relu", "Flatten", "Reshape", *LAYERS):
            chain.append(node.name)
            node = made_by.get(node.input[0])
        if node and node.op_type in AVERAGES:
            found.update(chain)
    return [name for name in layers(graph) if name in found]
