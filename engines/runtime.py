"""Which runtime runs a published model."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np

from engines import manifest
from engines.engine import Engine, EngineError
from engines.store import PublishedModel

Measured = Literal["openvino", "onnxruntime", "torch"]
Runtime = Literal[Measured, "null"]


def open_engine(model: PublishedModel, runtime: Runtime, precision: str) -> Engine:
    """An engine that has run once, so that no request waits for a compilation.

    ManifestError if a file is missing or not the published one, EngineError if the runtime cannot run it.
    """
    entry = model.manifest
    entry.check_files(model.folder)
    try:
        engine = make_engine(model, runtime, precision)
    except ModuleNotFoundError as error:
        raise EngineError(f"{runtime} is not installed here ({error}): pip install '.[training]'") from error
    try:
        logits = engine.infer(np.zeros((1, *entry.preprocess.shape), np.uint8))
    except RuntimeError as error:
        raise EngineError(f"{runtime} cannot run {entry.tag}: {error}") from error
    if logits.shape != (1, len(entry.labels)):
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


def make_engine(model: PublishedModel, runtime: Runtime, precision: str) -> Engine:
    """The engine of one runtime, whose library is imported only now."""
    match runtime:
        case "openvino":
            from engines.openvino import OpenVINOEngine

            return OpenVINOEngine(graph_of(model, precision), precision)
        case "onnxruntime":
            from engines.onnxruntime import ONNXRuntimeEngine

            return ONNXRuntimeEngine(graph_of(model, precision), precision)
        case "torch":
            from engines.torch import open_torch

            return open_torch(model, precision)
        case "null":
            from engines.null import NullEngine

            return NullEngine(len(model.manifest.labels))
