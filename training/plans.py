"""TensorRT plans of architectures with random weights: build time, size and layers in each precision."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from engines.measured.plans import BATCHES, Built, Figures, Target, build, head, line
from engines.published.manifest import GRAPHS, Calibration, Record
from engines.published.preprocess import Preprocess
from engines.runtimes.engine import EngineError
from engines.runtimes.tensorrt import plan
from engines.runtimes.tensorrt.inspect import Node, Traffic, computed_in, fallen_back, nodes_of, traffic
from engines.runtimes.tensorrt.library import PRECISIONS, library
from engines.runtimes.torch import FromPixels, Normalise
from models.card import Architecture
from models.zoo import ZOO
from training import jsonl
from training.data import sample_pixels
from training.errors import TrainingError
from training.export import export
from training.graphs import halve
from training.machine import check_appendable
from training.quantize import quantize
from training.random_weights import settle

CALIBRATION_IMAGES = 8


class PlanResult(Record):
    """Figures of one plan.

    `computed_in` counts the convolutions and linear layers by the precision in which the plan computes them. The layers
    read and write `image_bytes` for each image and `batch_bytes` for each batch; rows of older versions lack both.
    """

    architecture: str
    input_shape: tuple[int, int, int]
    precision: str
    target: str
    version: str
    seconds: float
    bytes: int
    nodes: int
    layers: int
    computed_in: dict[str, int]
    fallen_back: tuple[str, ...]
    image_bytes: int | None = None
    batch_bytes: int | None = None

    @property
    def moved(self) -> Traffic | None:
        """Bytes that the plan's layers read and write, if known."""
        known = self.image_bytes is not None and self.batch_bytes is not None
        return Traffic(self.image_bytes or 0, self.batch_bytes or 0) if known else None


def sweep(names: Sequence[str], target: Target, file: Path) -> None:
    """Build the plans of `names` that `file` lacks, and append each to the file of JSON lines.

    Weights are random; input size and classes are the paper's. A plan that fails does not stop the others. Raises
    TrainingError, which names the failed plans, after the last plan.
    """
    check_appendable(file)
    runtime, max_batch, capabilities = target
    failed: list[str] = []
    for name in names:
        built_already = {row.precision for row in read(file, target) if row.architecture == name}
        for precision, graph in graphs(ZOO[name], [each for each in PRECISIONS if each not in built_already]):
            try:
                built = build(runtime, partial(plan.build, runtime, graph, max_batch, capabilities))
                row = result_of(ZOO[name], precision, built, nodes_of(graph), target)
            except EngineError as error:
                failed.append(f"{name} in {precision}")
                print(f"{name} in {precision}: {error}", flush=True)
                continue
            jsonl.append(file, row)
            print(f"{name} in {precision}: {row.layers} layers in {row.seconds:.1f} s", flush=True)
    if failed:
        raise TrainingError(f"not built, for the reasons above: {'; '.join(failed)}")


def graphs(card: Architecture, precisions: Sequence[str]) -> Iterator[tuple[str, Path]]:
    """Yield each precision and its ONNX file, which exists until the iteration ends."""
    if not precisions:
        return
    channels, edge, _ = card.input_shape
    preprocess = Preprocess(mode="L" if channels == 1 else "RGB", resize_edge=edge, crop=edge)
    pixels = sample_pixels(preprocess)[:CALIBRATION_IMAGES]
    torch.manual_seed(0)
    module = FromPixels(card.build(card.classes), Normalise((0.5,) * channels, (0.5,) * channels))
    settle(module, pixels)
    with TemporaryDirectory() as folder:
        fp32 = Path(folder) / GRAPHS["fp32"]
        export(module, preprocess, fp32)
        for precision in precisions:
            path = Path(folder) / GRAPHS[precision]
            if precision == "fp16":
                halve(fp32, path)
            if precision == "int8":
                how = Calibration(images=len(pixels), method="minmax", in_float=())
                quantize(fp32, path, pixels, how, Path(folder) / "ranges.json")
            yield precision, path


def result_of(
    card: Architecture, precision: str, built: Built, nodes: Mapping[str, Node], target: Target
) -> PlanResult:
    """Return the figures of a plan that was built, whose ONNX file has `nodes`."""
    image_bytes, batch_bytes = traffic(built.layers)
    return PlanResult(
        architecture=card.name,
        input_shape=card.input_shape,
        precision=precision,
        target=str(target),
        version=library(target.runtime).__version__,
        **built.figures._asdict(),
        nodes=len(nodes),
        computed_in=computed_in(nodes, built.layers),
        fallen_back=tuple(fallen_back(nodes, built.layers)),
        image_bytes=image_bytes,
        batch_bytes=batch_bytes,
    )


def read(file: Path, target: Target) -> list[PlanResult]:
    """Return the file's plans for a target and the installed version of its library; none without a file."""
    wanted = str(target), library(target.runtime).__version__
    return [row for row in jsonl.read(file, PlanResult) if (row.target, row.version) == wanted]


def table(rows: Sequence[PlanResult]) -> str:
    """Return all plans as a Markdown table, in the lecture's order."""
    figures = {(row.architecture, row.precision): Figures(row.seconds, row.bytes, row.layers) for row in rows}
    lines = [
        line(name, card.input_shape, [figures.get((name, precision)) for precision in PRECISIONS])
        for name, card in ZOO.items()
        if any((name, precision) in figures for precision in PRECISIONS)
    ]
    return "\n".join([head(PRECISIONS), *lines])


def bytes_table(rows: Sequence[PlanResult]) -> str:
    """Return the MB that the layers of fp16 and INT8 plans read and write, as a Markdown table.

    For each batch size: the MB in both precisions, and INT8's as a multiple of fp16's.
    """
    moved = {(row.architecture, row.precision): row.moved for row in rows}
    lines = [
        "| model |" + "".join(f" batch {images}: fp16 | int8 | times |" for images in BATCHES),
        "| --- |" + " ---: | ---: | ---: |" * len(BATCHES),
    ]
    for name in ZOO:
        half, int8 = moved.get((name, "fp16")), moved.get((name, "int8"))
        if half and int8:
            pairs = [(half.of(images), int8.of(images)) for images in BATCHES]
            cells = [f" {fp16 / 1e6:,.1f} | {low / 1e6:,.1f} | {low / fp16:.2f} |" for fp16, low in pairs]
            lines.append(f"| `{name}` |{''.join(cells)}")
    return "\n".join(lines)
