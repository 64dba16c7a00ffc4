"""Fidelity of an engine: a comparison of its answers with those of fp32 torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from engines.measured.records import Fidelity, ScaledFidelity
from engines.published import manifest
from engines.published.essentials import essentials
from engines.published.picture import open_picture, upright
from engines.published.preprocess import draft
from engines.published.store import PublishedModel
from engines.runtimes.engine import Engine, in_batches


def verify(model: PublishedModel, engine: Engine) -> Fidelity:
    """Compare an open engine with torch on the published verification set."""
    tensors = load_file(model.folder / manifest.VERIFICATION)
    return compare(all_logits(engine, tensors["pixels"]), tensors["logits"], tensors.get("targets"))


def verify_scaled(model: PublishedModel, engine: Engine, jpegs: Sequence[Path]) -> ScaledFidelity:
    """Compare the answers of an open engine on JPEGs decoded scaled down with the answers on JPEGs decoded in full."""
    preprocess = model.manifest.preprocess

    def logits(scaled: bool) -> NDArray[np.float32]:
        pixels = []
        for path in jpegs:
            picture = open_picture(essentials(path.read_bytes()), ("JPEG",))
            if scaled:
                draft(picture, [preprocess])
            pixels.append(preprocess(upright(picture)))
        return all_logits(engine, np.stack(pixels))

    return ScaledFidelity(**compare(logits(scaled=True), logits(scaled=False), None).model_dump())


def all_logits(engine: Engine, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return the engine's logits, (N, classes), inferred in batches of at most MAX_BATCH images."""
    return np.concatenate([engine.infer(batch) for batch in in_batches(pixels)])


def logit_error(logits: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    """Return the largest absolute difference of any logit, divided by the largest absolute expected logit."""
    return float(np.abs(logits - expected).max() / np.abs(expected).max())


def compare(logits: NDArray[np.float32], expected: NDArray[np.float32], targets: NDArray[np.int64] | None) -> Fidelity:
    """Compare logits (N, classes) with expected ones, and with the true classes `targets` (N,), or None if unknown."""
    classes, expected_classes = logits.argmax(1), expected.argmax(1)
    largest = np.argsort(-logits, axis=1)[:, :5]
    labelled = targets is not None
    return Fidelity(
        images=len(logits),
        top1=float((classes == targets).mean()) if labelled else None,
        top5=float((largest == np.asarray(targets)[:, None]).any(1).mean()) if labelled else None,
        torch_top1=float((expected_classes == targets).mean()) if labelled else None,
        agreement=float((classes == expected_classes).mean()),
        logit_error=logit_error(logits, expected),
    )
