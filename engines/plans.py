"""TensorRT plans of published models, built now: a row on each, or what became of the network's layers."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from engines.engine import EngineError
from engines.inspector import EngineLayer, computing, engine_layers, fallen_back, nodes_of, report
from engines.plan import TensorRT, prepare
from engines.runtime import graph_of
from engines.store import PublishedModel
from engines.tensorrt import layers_of

HEAD = ("| model | input |", "| --- | --- |")


class Target(NamedTuple):
    """What plans are built for: by default this machine's GPU."""

    runtime: TensorRT
    max_batch: int
    capabilities: Sequence[str]

    def __str__(self) -> str:
        hardware = f"compute capability {', '.join(self.capabilities)}" if self.capabilities else "this machine's GPU"
        return f"{self.runtime} for {hardware}, batches of 1 to {self.max_batch}"


class Built(NamedTuple):
    """What there is to say of a plan."""

    seconds: float
    bytes: int
    layers: list[EngineLayer]


def build(model: PublishedModel, precision: str, target: Target) -> Built:
    """Build a plan, and keep it where the engine finds it; EngineError if that cannot be done."""
    graph = graph_of(model, precision)
    started = time.perf_counter()
    sha256 = model.manifest.files[graph.name].sha256
    plan = prepare(target.runtime, graph, sha256, precision, target.max_batch, target.capabilities)
    seconds = time.perf_counter() - started
    return Built(seconds, len(plan.data), engine_layers(layers_of(target.runtime, plan)))


def head(precisions: Sequence[str]) -> str:
    """Of a Markdown table of `row`s."""
    columns = [f" {precision}: s | MB | layers |" for precision in precisions]
    return f"{HEAD[0]}{''.join(columns)}\n{HEAD[1]}{' ---: | ---: | ---: |' * len(columns)}"


def row(model: PublishedModel, precisions: Sequence[str], target: Target) -> str:
    """How long each plan took to build, its size, and of how many layers it is; of what is not published, dashes."""
    cells = [f"`{model.manifest.architecture}`", "x".join(map(str, model.manifest.complexity.input_shape))]
    for precision in precisions:
        if precision in model.manifest.precisions:
            built = build(model, precision, target)
            cells += [f"{built.seconds:.1f}", f"{built.bytes / 1e6:,.1f}", str(len(built.layers))]
        else:
            cells += ["-"] * 3
    return f"| {' | '.join(cells)} |"


def inspect(model: PublishedModel, precision: str, target: Target) -> Iterator[str]:
    """A line on each layer of a plan, and what they come to; EngineError if one in INT8 in the file is not in the plan.

    Also if it cannot be built, or what TensorRT tells of it is not understood.
    """
    built = build(model, precision, target)
    nodes = nodes_of(graph_of(model, precision))
    yield f"{model.manifest.tag} in {precision}: {target}"
    yield from report(nodes, built.layers)
    modules = [name for name, node in nodes.items() if node.module]
    types = Counter(layer.inputs[0].type for name in modules if (layer := computing(name, built.layers)))
    counts = ", ".join(f"{count} in {kind}" for kind, count in types.items())
    yield f"{len(nodes)} nodes in {len(built.layers)} layers; {len(modules)} convolutions and linear layers, {counts}"
    if types.total() < len(modules):
        raise EngineError(f"{len(modules) - types.total()} of them are in no layer that is understood")
    if fallen := fallen_back(nodes, built.layers):
        raise EngineError(f"in INT8 in the file, and not in the plan: {', '.join(fallen)}")
