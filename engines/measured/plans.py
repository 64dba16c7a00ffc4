"""TensorRT plans of published models: building, a table of their figures, and inspection of their layers."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

from engines.published.store import PublishedModel
from engines.runtimes.engine import EngineError
from engines.runtimes.registry import graph_of
from engines.runtimes.tensorrt.engine import layers_of
from engines.runtimes.tensorrt.inspect import (
    EngineLayer,
    computed_in,
    engine_layers,
    fallen_back,
    nodes_of,
    report,
    traffic,
)
from engines.runtimes.tensorrt.library import TensorRT
from engines.runtimes.tensorrt.plan import Plan, prepare

BATCHES = (1, 8, 32)  # images, for which `inspect` sums the bytes that a plan moves
HEAD = ("| model | input |", "| --- | --- |")


class Target(NamedTuple):
    """Target of TensorRT plans: runtime, largest batch, and compute capabilities, none for this machine's GPU."""

    runtime: TensorRT
    max_batch: int
    capabilities: Sequence[str]

    def __str__(self) -> str:
        hardware = f"compute capability {', '.join(self.capabilities)}" if self.capabilities else "this machine's GPU"
        return f"{self.runtime} for {hardware}, batches of 1 to {self.max_batch}"


class Figures(NamedTuple):
    """Figures of a plan: seconds to build, bytes, and number of layers."""

    seconds: float
    bytes: int
    layers: int


class Built(NamedTuple):
    """Result of building a plan: figures and layers."""

    figures: Figures
    layers: Sequence[EngineLayer]


def build(runtime: TensorRT, make: Callable[[], Plan]) -> Built:
    """Call `make` to build a plan, and return its figures and layers. Raises EngineError if the build fails."""
    started = time.perf_counter()
    plan = make()
    seconds = round(time.perf_counter() - started, 2)
    layers = engine_layers(layers_of(runtime, plan))
    return Built(Figures(seconds, len(plan.data), len(layers)), layers)


def build_model(model: PublishedModel, precision: str, target: Target) -> Built:
    """Build a plan of a model in the cache from which the engine loads plans.

    Raises EngineError if the build fails, ManifestError if a file is missing or is not the published one.
    """
    model.manifest.check_files(model.folder)
    graph = graph_of(model, precision)
    sha256 = model.manifest.files[graph.name].sha256
    runtime, max_batch, capabilities = target
    return build(runtime, partial(prepare, runtime, graph, sha256, precision, max_batch, capabilities))


def head(precisions: Sequence[str]) -> str:
    """Return the head of a Markdown table whose rows are made by `line`."""
    columns = [f" {precision}: s | MB | layers |" for precision in precisions]
    return f"{HEAD[0]}{''.join(columns)}\n{HEAD[1]}{' ---: | ---: | ---: |' * len(columns)}"


def line(architecture: str, input_shape: Sequence[int], plans: Sequence[Figures | None]) -> str:
    """Return the table row of an architecture, with dashes for a missing plan."""
    cells = [f"`{architecture}`", "x".join(map(str, input_shape))]
    for figures in plans:
        cells += [f"{figures.seconds:.1f}", f"{figures.bytes / 1e6:,.1f}", str(figures.layers)] if figures else "---"
    return f"| {' | '.join(cells)} |"


def inspect(model: PublishedModel, precision: str, target: Target) -> Iterator[str]:
    """Yield a line on each layer of a plan, then their counts.

    Raises EngineError if the plan cannot be built, if TensorRT's description of the plan is not understood, or if a
    layer that the file has in INT8 runs in another precision; ManifestError if a file is missing or is not the
    published one.
    """
    layers = build_model(model, precision, target).layers
    nodes = nodes_of(graph_of(model, precision))
    yield f"{model.manifest.tag} in {precision}: {target}"
    yield from report(nodes, layers)
    computed = computed_in(nodes, layers)
    weighted = sum(node.module is not None for node in nodes.values())
    counts = ", ".join(f"{count} in {kind}" for kind, count in computed.items())
    yield f"{len(nodes)} nodes in {len(layers)} layers; {weighted} convolutions and linear layers, {counts}"
    moved = traffic(layers)
    batches = ", ".join(f"{moved.of(images) / 1e6:,.2f} MB for {images}" for images in BATCHES)
    yield f"reads and writes {moved.image / 1e6:,.2f} MB an image and {moved.batch / 1e6:,.2f} MB a batch: {batches}"
    if missing := weighted - computed.total():
        raise EngineError(f"{missing} of them are in no layer that is understood")
    if fallen := fallen_back(nodes, layers):
        raise EngineError(f"in INT8 in the file, and not in the plan: {', '.join(fallen)}")
