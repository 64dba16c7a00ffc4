"""What TensorRT made of a network: the layers of a plan beside the network's own."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from engines.runtimes.engine import EngineError

TENSOR = re.compile(r"Dimensions: \[([-\d,]*)\].*?Datatype: (\w+), Format: \(?(\w+)")  # of TensorRT for RTX
OTHER_TENSOR = re.compile(r"Dimensions: \[([-\d,]*)\].*?Format/Datatype: ([^}]+?)\.? *\}")  # of TensorRT
TYPES = {"uint8": "uint8", "int8": "int8", "half": "half", "fp16": "half", "float": "float", "fp32": "float"}
SECTION = re.compile(r"(Inputs|Constants|Outputs): \[((?: ?\{[^{}]*\},?)*)\]")
GENERATED = "kgen"  # code that TensorRT generates: mostly what stands before and after a weighted layer
PASSED_OVER = ("DequantizeLinear", "QuantizeLinear")


class Tensor(NamedTuple):
    """What a layer takes or gives: shape of one image, type, layout."""

    shape: tuple[int, ...]
    type: str
    layout: str

    def __str__(self) -> str:
        return f"{self.type} {'x'.join(map(str, self.shape))} {self.layout}"


class EngineLayer(NamedTuple):
    """One layer of a plan, and the names of the ONNX nodes that are in it, or a part of them."""

    type: str
    inputs: tuple[Tensor, ...]
    constants: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    nodes: tuple[str, ...]

    @property
    def computes_in(self) -> str:
        """What both its pixels and its weights are; what a mixture is, such as "int8 and float", if they differ."""
        weights = {tensor.type for tensor in self.constants}
        taken = self.inputs[0].type
        return taken if taken in weights or not weights else f"{taken} and {', '.join(sorted(weights))}"


class Node(NamedTuple):
    """An ONNX node; of convolutions and linear layers also the module's name, and whether the file has them in INT8."""

    type: str
    module: str | None
    quantised: bool


def engine_layers(told: str) -> list[EngineLayer]:
    """The layers of a plan, of which TensorRT tells a line each; not those that only wait for others.

    EngineError if none of the lines is understood.
    """
    lines = [line for line in told.splitlines() if line.startswith("Name: ")]
    layers = [layer for line in lines if (layer := parsed(line)).outputs]
    if lines and not layers:
        raise EngineError(f"what TensorRT tells of its layers is not understood: {lines[0]}")
    return layers


def parsed(line: str) -> EngineLayer:
    """`Name: .., LayerType: .., Inputs: [{..}], Constants: [{..}], Outputs: [{..}], .., Metadata: [ONNX Layer: ..]`."""
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
    """Those that a part of a line describes."""
    for sizes, element, layout in TENSOR.findall(text):
        yield Tensor(shape_of(sizes), element.lower(), layout)
    for sizes, words in OTHER_TENSOR.findall(text):
        element = next((name for word, name in TYPES.items() if word in words.lower()), words)
        yield Tensor(shape_of(sizes), element, words)


def shape_of(sizes: str) -> tuple[int, ...]:
    """Of one image."""
    return tuple(int(size) for size in sizes.split(",")[1:])


def nodes_of(path: Path) -> dict[str, Node]:
    """The nodes of an ONNX file by name, from the input on; EngineError if there is nothing to read it with."""
    try:
        import onnx

        from engines.published.graph import LAYERS
    except ModuleNotFoundError as error:
        raise EngineError(f"{error}: pip install '.[training]'") from error

    graph = onnx.load(path, load_external_data=False).graph
    made_by = {output: node for node in graph.node for output in node.output}

    def module(weights: str) -> str:
        while (node := made_by.get(weights)) and node.op_type in PASSED_OVER:
            weights = node.input[0]
        return re.sub(r"^net\.|\.weight(_quantized)?$", "", weights)

    def quantised(tensor: str) -> bool:
        return tensor in made_by and made_by[tensor].op_type == "DequantizeLinear"

    return {
        node.name: Node(node.op_type, module(node.input[1]), all(map(quantised, node.input[:2])))
        if node.op_type in LAYERS
        else Node(node.op_type, None, False)
        for node in graph.node
    }


def computing(name: str, plan: Sequence[EngineLayer]) -> EngineLayer | None:
    """The layer of a plan that has the multiply-accumulates of a node; None if it is in none."""
    having = [layer for layer in plan if name in layer.nodes]
    return next((layer for layer in having if layer.type != GENERATED), having[0] if having else None)


def computed_in(nodes: Mapping[str, Node], plan: Sequence[EngineLayer]) -> Counter[str]:
    """How many of a network's convolutions and linear layers a plan computes in each type."""
    weighted = (name for name, node in nodes.items() if node.module)
    return Counter(layer.computes_in for name in weighted if (layer := computing(name, plan)))


def fallen_back(nodes: Mapping[str, Node], plan: Sequence[EngineLayer]) -> list[str]:
    """Modules that are in INT8 in the file, and in the plan are not."""
    return [
        node.module
        for name, node in nodes.items()
        if node.module and node.quantised and not ((layer := computing(name, plan)) and layer.computes_in == "int8")
    ]


def report(nodes: Mapping[str, Node], plan: Sequence[EngineLayer]) -> Iterator[str]:
    """A line for each layer of the plan: its type, what it takes and gives, and what it computes of the network."""
    computed = {name: computing(name, plan) for name, node in nodes.items() if node.module}
    for layer in plan:
        modules = [nodes[name].module or "" for name in layer.nodes if computed.get(name) is layer]
        others = dict.fromkeys(nodes[name].type for name in layer.nodes if name in nodes and name not in computed)
        taken, given = (" + ".join(map(str, tensors)) for tensors in (layer.inputs, layer.outputs))
        yield f"{layer.type:14} {taken:32} -> {given:32} {', '.join([*modules, *others])}"
