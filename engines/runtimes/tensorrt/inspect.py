"""Comparison of a plan's layers with the nodes of the ONNX file that the plan was built from."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import NamedTuple

from engines.runtimes.engine import EngineError

RTX_TENSOR = re.compile(r"Dimensions: \[([-\d,]*)\].*?Datatype: (\w+), Format: \(?(\w+)")  # of TensorRT for RTX
TENSOR = re.compile(r"Dimensions: \[([-\d,]*)\].*?Format/Datatype: ([^}]+?)\.? *\}")  # of TensorRT
TYPES = {"uint8": "uint8", "int8": "int8", "half": "half", "fp16": "half", "float": "float", "fp32": "float"}
BYTES = {"bool": 1, "uint8": 1, "int8": 1, "half": 2, "bfloat16": 2, "float": 4, "int32": 4, "int64": 8}
SECTION = re.compile(r"(Inputs|Constants|Outputs): \[((?: ?\{[^{}]*\},?)*)\]")
GENERATED = "kgen"  # code that TensorRT generates, mostly for the operations before and after a weighted layer
QUANTISING = ("DequantizeLinear", "QuantizeLinear")


class Tensor(NamedTuple):
    """Input, constant or output of a layer: dimensions, of which the batch is -1, element type, memory layout."""

    dimensions: tuple[int, ...]
    type: str
    layout: str

    def __str__(self) -> str:
        return f"{self.type} {'x'.join(map(str, self.shape))} {self.layout}"

    @property
    def shape(self) -> tuple[int, ...]:
        """Dimensions without the first, which of activations is the batch."""
        return self.dimensions[1:]

    @property
    def batched(self) -> bool:
        """Growth with the batch: true of activations, not of constants."""
        return -1 in self.dimensions

    @property
    def bytes(self) -> int:
        """Size of the tensor, of one image if the tensor grows with the batch."""
        return prod(size for size in self.dimensions if size != -1) * BYTES[self.type]


class EngineLayer(NamedTuple):
    """Layer of a plan, with the names of the ONNX nodes that it computes wholly or in part."""

    type: str
    inputs: tuple[Tensor, ...]
    constants: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    nodes: tuple[str, ...]

    @property
    def computes_in(self) -> str:
        """Type of the input and the weights, such as "int8", or "int8 and float" if their types differ."""
        weights = {tensor.type for tensor in self.constants}
        pixels = self.inputs[0].type
        return pixels if pixels in weights or not weights else f"{pixels} and {', '.join(sorted(weights))}"


class Traffic(NamedTuple):
    """Bytes that the layers of a plan read and write: for each image, and once for each batch (weights)."""

    image: int
    batch: int

    def of(self, images: int) -> int:
        """Return the bytes that a batch of `images` moves."""
        return images * self.image + self.batch


class Node(NamedTuple):
    """Node of an ONNX file. Only convolutions and linear layers have a `module` name and can be `quantised` to INT8."""

    type: str
    module: str | None
    quantised: bool


def engine_layers(description: str) -> list[EngineLayer]:
    """Parse TensorRT's description of a plan, a line per layer; drop layers without outputs, which only synchronise.

    Raises EngineError if no line can be parsed.
    """
    lines = [line for line in description.splitlines() if line.startswith("Name: ")]
    layers = [layer for line in lines if (layer := parsed(line)).outputs]
    if lines and not layers:
        raise EngineError(f"TensorRT's description of its layers is not understood: {lines[0]}")
    return layers


def traffic(plan: Sequence[EngineLayer]) -> Traffic:
    """Return the bytes that the layers of a plan read and write if no tensor stays in a cache.

    Each layer reads its inputs and constants and writes its outputs. Raises EngineError for an unknown element type.
    """
    moved = [tensor for layer in plan for tensor in (*layer.inputs, *layer.constants, *layer.outputs)]
    if unknown := {tensor.type for tensor in moved} - BYTES.keys():
        raise EngineError(f"TensorRT's description has types of unknown size: {', '.join(sorted(unknown))}")
    image = sum(tensor.bytes for tensor in moved if tensor.batched)
    return Traffic(image, sum(tensor.bytes for tensor in moved) - image)


def parsed(line: str) -> EngineLayer:
    """Parse `Name: .., LayerType: .., Inputs: [{..}], Constants: .., Outputs: .., Metadata: [ONNX Layer: ..]`."""
    kind = re.search(r"LayerType: (\w+)", line)
    sections = {name: tuple(tensors(text)) for name, text in SECTION.findall(line)}
    return EngineLayer(
        type=kind[1] if kind else "",
        inputs=sections.get("Inputs", ()),
        constants=sections.get("Constants", ()),
        outputs=sections.get("Outputs", ()),
        nodes=tuple(re.findall(r"\[ONNX Layer: ([^\]]+)\]", line)),
    )


def tensors(text: str) -> Iterator[Tensor]:
    """Yield the tensors in a section of a line."""
    for sizes, element, layout in RTX_TENSOR.findall(text):
        yield Tensor(numbers(sizes), element.lower(), layout)
    for sizes, words in TENSOR.findall(text):
        element = next((name for word, name in TYPES.items() if word in words.lower()), words)
        yield Tensor(numbers(sizes), element, words)


def numbers(sizes: str) -> tuple[int, ...]:
    """Return the dimensions in a text such as "-1,3,32,32"."""
    return tuple(int(size) for size in sizes.split(",") if size)


def nodes_of(path: Path) -> dict[str, Node]:
    """Return the nodes of an ONNX file by name, in the file's order. Raises EngineError if `onnx` is not installed."""
    try:
        import onnx

        from engines.published.graph import LAYERS
    except ModuleNotFoundError as error:
        raise EngineError(f"{error}: pip install '.[training]'") from error

    graph = onnx.load(path, load_external_data=False).graph
    producers = {output: node for node in graph.node for output in node.output}

    def module(weights: str) -> str:
        while (node := producers.get(weights)) and node.op_type in QUANTISING:
            weights = node.input[0]
        return re.sub(r"^net\.|\.weight(_quantized)?$", "", weights)

    def quantised(tensor: str) -> bool:
        return tensor in producers and producers[tensor].op_type == "DequantizeLinear"

    return {
        node.name: Node(node.op_type, module(node.input[1]), all(map(quantised, node.input[:2])))
        if node.op_type in LAYERS
        else Node(node.op_type, None, False)
        for node in graph.node
    }


def computing(name: str, plan: Sequence[EngineLayer]) -> EngineLayer | None:
    """Return the layer of a plan that computes a node's multiply-accumulates, or None."""
    candidates = [layer for layer in plan if name in layer.nodes]
    return next((layer for layer in candidates if layer.type != GENERATED), candidates[0] if candidates else None)


def computed_in(nodes: Mapping[str, Node], plan: Sequence[EngineLayer]) -> Counter[str]:
    """Return how many of a network's convolutions and linear layers a plan computes in each type."""
    weighted = (name for name, node in nodes.items() if node.module)
    return Counter(layer.computes_in for name in weighted if (layer := computing(name, plan)))


def fallen_back(nodes: Mapping[str, Node], plan: Sequence[EngineLayer]) -> list[str]:
    """Return the names of modules that are INT8 in the file but not in the plan."""
    return [
        node.module
        for name, node in nodes.items()
        if node.module and node.quantised and not ((layer := computing(name, plan)) and layer.computes_in == "int8")
    ]


def report(nodes: Mapping[str, Node], plan: Sequence[EngineLayer]) -> Iterator[str]:
    """Yield a line for each layer of the plan: type, inputs, outputs, and the modules and operations in the layer."""
    computed = {name: computing(name, plan) for name, node in nodes.items() if node.module}
    for layer in plan:
        modules = [nodes[name].module or "" for name in layer.nodes if computed.get(name) is layer]
        others = dict.fromkeys(nodes[name].type for name in layer.nodes if name in nodes and name not in computed)
        inputs, outputs = (" + ".join(map(str, tensors)) for tensors in (layer.inputs, layer.outputs))
        yield f"{layer.type:14} {inputs:32} -> {outputs:32} {', '.join([*modules, *others])}"
