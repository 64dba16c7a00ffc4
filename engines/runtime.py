"""Which runtime runs a published model."""

from __future__ import annotations

from typing import Literal

import numpy as np

from engines import manifest
from engines.engine import Engine, EngineError
from engines.store import PublishedModel

Runtime = Literal["openvino", "null"]


def open_engine(model: PublishedModel, runtime: Runtime, precision: str) -> Engine:
    """An engine that has run once, so that no request waits for a compilation.

    ManifestError if a file is missing or not the published one, EngineError if the runtime cannot run it.
    """
    entry = model.manifest
    entry.check_files(model.folder)
    engine = make_engine(model, runtime, precision)
    try:
        logits = engine.infer(np.zeros((1, *entry.preprocess.shape), np.uint8))
    except RuntimeError as error:
        raise EngineError(f"{runtime} cannot run {entry.tag}: {error}") from error
    if logits.shape != (1, len(entry.labels)):
        raise EngineError(f"{entry.tag} has {len(entry.labels)} labels, but its graph gives {logits.shape[1:]}")
    return engine


def make_engine(model: PublishedModel, runtime: Runtime, precision: str) -> Engine:
    """The engine of one runtime, whose library is imported only now."""
    match runtime:
        case "openvino":
            from engines.openvino import OpenVINOEngine

            return OpenVINOEngine(model.folder / manifest.ONNX, precision)
        case "null":
            from engines.null import NullEngine

            return NullEngine(len(model.manifest.labels))
