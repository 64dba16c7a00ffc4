"""Changes to exported graphs: weights that stay in the checkpoint, folded batch norms, and float16."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx_ir as ir
from onnxscript import rewriter
from onnxscript.rewriter.rules.common import fuse_batchnorm_into_conv_rule, fuse_batchnorm_into_gemm_rule

from engines.published.manifest import sha256

NET = "net."  # prefix of the network's tensors in a graph of `FromPixels`
SMALLEST = 1024  # bytes of the smallest tensor that is referred to; a reference takes about 100


def refer_to_weights(model: ir.Model, weights: Path) -> None:
    """Replace each tensor that equals the tensor of its name in the safetensors file `weights` by a reference.

    References are ONNX's external data: file name, offset and length. The graph's file must be in the folder of
    `weights`. The SHA-256 of `weights` becomes part of the graph, whose own hash then identifies all its values.
    """
    content = np.memmap(weights, np.uint8, "r")
    offsets = tensor_offsets(content)
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        start, end = offsets.get(name.removeprefix(NET), (0, 0))
        if tensor is None or end - start != tensor.nbytes or tensor.nbytes < SMALLEST:
            continue
        if np.array_equal(content[start:end], np.frombuffer(tensor.tobytes(), np.uint8)):
            place = weights.name, start, end - start
            shape = ir.Shape(tensor.shape.numpy())
            value.const_value = ir.ExternalTensor(*place, tensor.dtype, shape=shape, name=name, base_dir=weights.parent)
    model.metadata_props["weights_sha256"] = sha256(weights)


def tensor_offsets(content: np.memmap[tuple[int], np.dtype[np.uint8]]) -> dict[str, tuple[int, int]]:
    """Return the offsets in bytes of each tensor's start and end in a safetensors file.

    The file begins with the length of its header in 8 bytes; the header's own offsets count from the header's end.
    """
    data = 8 + int.from_bytes(content[:8].tobytes(), "little")
    header = json.loads(content[8:data].tobytes())
    header.pop("__metadata__", None)
    ranges = {name: tensor["data_offsets"] for name, tensor in header.items()}
    return {name: (data + start, data + end) for name, (start, end) in ranges.items()}


def fold(source: Path, out: Path) -> None:
    """Write the graph `source` to `out`, in the same folder, with batch norms folded into the layers before them.

    INT8 and fp16 graphs are made of folded ones: a layer's output is then rounded after the batch norm, and once.
    """
    model = ir.load(source)
    ir.save(rewriter.rewrite(model, [fuse_batchnorm_into_conv_rule, fuse_batchnorm_into_gemm_rule]), out)


def halve(source: Path, out: Path) -> None:
    """Write the fp32 graph `source` to `out` with the network in float16; normalisation and logits are in float32.

    TensorRT takes each layer's type from the graph, so that every constant of the network is in float16 too.
    """
    model = ir.load(source)
    graph = model.graph
    normalisation = nodes_of_normalisation(graph)
    net = [node for node in graph if node not in normalisation]
    constants = {value for node in net for value in node.inputs if value is not None and value.is_initializer()}
    for constant in constants:
        if constant.const_value is not None and constant.dtype == ir.DataType.FLOAT:
            with np.errstate(over="ignore"):  # infinite, as in torch
                constant.const_value = ir.tensor(constant.const_value.numpy().astype(np.float16), name=constant.name)
            constant.dtype = ir.DataType.FLOAT16
    for node in net:
        if node.op_type == "Cast" and node.attributes["to"].as_int() == ir.DataType.FLOAT:
            node.attributes["to"] = ir.AttrInt64("to", ir.DataType.FLOAT16)
        for output in node.outputs:
            if output.dtype == ir.DataType.FLOAT:
                output.dtype = ir.DataType.FLOAT16

    to_half = cast(normalisation[-1].outputs[0], ir.DataType.FLOAT16)
    for node in net:
        for index, value in enumerate(node.inputs):
            if value is normalisation[-1].outputs[0]:
                node.replace_input_with(index, to_half.outputs[0])
    graph.insert_after(normalisation[-1], to_half)
    (logits,) = graph.outputs
    to_float = cast(logits, ir.DataType.FLOAT)
    to_float.outputs[0].name, logits.name = logits.name, f"{logits.name}_float16"
    graph.append(to_float)
    graph.outputs[:] = to_float.outputs
    ir.save(model, out)


def nodes_of_normalisation(graph: ir.Graph) -> list[ir.Node]:
    """Return the nodes from the graph's input to the division by the standard deviation, the first division."""
    node: ir.Node | None = next(node for node in graph if node.op_type == "Div")
    nodes: list[ir.Node] = []
    while node:
        nodes.insert(0, node)
        node = node.inputs[0].producer() if node.inputs[0] else None
    return nodes


def cast(value: ir.Value, dtype: ir.DataType) -> ir.Node:
    """Return a new node that casts a value to a type, and is part of no graph yet."""
    node = ir.node("Cast", [value], attributes={"to": dtype})
    node.outputs[0].dtype, node.outputs[0].shape = dtype, value.shape
    return node
