"""Whether an engine's answers are those of fp32 torch."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from engines import manifest
from engines.engine import Engine, in_batches
from engines.records import Fidelity
from engines.runtime import EngineSpec, open_engine
from engines.store import PublishedModel


def verify(model: PublishedModel, spec: EngineSpec) -> Fidelity:
    """Compare an engine with torch on the verification set; EngineError or ManifestError if it cannot be opened."""
    engine = open_engine(model, spec)
    tensors = load_file(model.folder / manifest.VERIFICATION)
    return compare(all_logits(engine, tensors["pixels"]), tensors["logits"], tensors.get("targets"))


def all_logits(engine: Engine, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The engine's logits, (N, classes), in batches of at most 32."""
    return np.concatenate([engine.infer(batch) for batch in in_batches(pixels)])


def logit_error(logits: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    """The largest difference of any logit, over the largest logit that is expected."""
    return float(np.abs(logits - expected).max() / np.abs(expected).max())


def compare(logits: NDArray[np.float32], expected: NDArray[np.float32], targets: NDArray[np.int64] | None) -> Fidelity:
    """Logits, (N, classes), beside torch's, and the right classes, (N,), if they are known."""
    classes, torch_classes = logits.argmax(1), expected.argmax(1)
    largest = np.argsort(-logits, axis=1)[:, :5]
    labelled = targets is not None
    return Fidelity(
        images=len(logits),
        top1=float((classes == targets).mean()) if labelled else None,
        top5=float((largest == np.asarray(targets)[:, None]).any(1).mean()) if labelled else None,
        torch_top1=float((torch_classes == targets).mean()) if labelled else None,
        agreement=float((classes == torch_classes).mean()),
        logit_error=logit_error(logits, expected),
    )
