"""Which runtime runs a published model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from engines import manifest
from engines.engine import Engine, EngineError
from engines.store import PublishedModel

Measured = Literal["openvino", "onnxruntime", "torch", "torch_compile"]
Runtime = Literal[Measured, "null"]


class EngineSpec(NamedTuple):
    """Which engine of a model: `streams` and `threads` are OpenVINO's."""

    runtime: Runtime
    precision: str
    streams: int = 1
    threads: int | None = None


def open_engine(model: PublishedModel, spec: EngineSpec, batches: Sequence[int] = (1,)) -> Engine:
    """An engine that has run once at each of these batch sizes, so that no request waits for a compilation.

    ManifestError if a file is missing or not the published one, EngineError if the runtime cannot run it.
    """
    entry = model.manifest
    entry.check_files(model.folder)
    try:
        engine = make_engine(model, spec)
        for batch in batches:
            logits = engine.infer(np.zeros((batch, *entry.preprocess.shape), np.uint8))
    except ModuleNotFoundError as error:
        raise EngineError(f"{spec.runtime} is not installed here ({error}): pip install '.[training]'") from error
    except RuntimeError as error:
        raise EngineError(f"{spec.runtime} cannot run {entry.tag}: {error}") from error
    if logits.shape != (batch, len(entry.labels)):
        raise EngineError(f"{entry.tag} has {len(entry.labels)} labels, but its graph gives {logits.shape[1:]}")
    return engine


def graph_of(model: PublishedModel, precision: str) -> Path:
    """The file that has a precision; EngineError if there is none."""
    entry = model.manifest
    if precision not in manifest.GRAPHS:
        raise EngineError(f"there is no precision {precision!r}; there are {', '.join(manifest.GRAPHS)}")
    if precision not in entry.precisions:
        raise EngineError(
            f"{entry.tag} has no {precision}: python -m training publish CHECKPOINT --precisions fp32,{precision}"
        )
    return model.folder / manifest.GRAPHS[precision]


def make_engine(model: PublishedModel, spec: EngineSpec) -> Engine:
    """The engine of one runtime, whose library is imported only now."""
    runtime, precision, streams, threads = spec
    match runtime:
        case "openvino":
            from engines.openvino import OpenVINOEngine

            graph = graph_of(model, precision)
            sha256 = model.manifest.files[graph.name].sha256
            return OpenVINOEngine(graph, precision, streams=streams, threads=threads, sha256=sha256)
        case "onnxruntime":
            from engines.onnxruntime import ONNXRuntimeEngine

            return ONNXRuntimeEngine(graph_of(model, precision), precision)
        case "torch" | "torch_compile":
            from engines.torch import open_torch

            return open_torch(model, precision, compiled=runtime == "torch_compile")
        case "null":
            from engines.null import NullEngine

            return NullEngine(len(model.manifest.labels))
