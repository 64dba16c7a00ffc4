"""What every peer shares: the file, the precision, the pixels and the answer."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from engines.measured import records
from engines.measured.select_engine import choose
from engines.published import store
from engines.runtimes.engine import EngineError
from engines.runtimes.registry import open_engine

MAX_BATCH = 32  # convserve's default, for every peer that batches
BATCHES = (1, 2, 4, 8, 16, 32)  # what convserve runs before it serves


class Model:
    """The published model `$PEER_MODEL`, a tag, run by OpenVINO in `$PEER_PRECISION`."""

    def __init__(self, batches: Sequence[int] = BATCHES) -> None:
        """Load it, and run it once at each of these batch sizes."""
        tag = os.environ["PEER_MODEL"]
        (model,) = (model for model in store.published() if model.manifest.tag == tag)
        self.labels, self._preprocess = model.manifest.labels, model.manifest.preprocess
        # as convserve does: what was measured on this machine may ask for several streams
        spec = choose(records.find_all(model), "openvino", os.environ["PEER_PRECISION"])
        self._engine = open_engine(model, spec, batches)

    def pixels(self, picture: Image.Image) -> NDArray[np.uint8]:
        """Of one picture."""
        return self._preprocess(picture)

    def infer(self, batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Logits, (N, classes)."""
        return self._engine.infer(batch)

    def top(self, logits: NDArray[np.float32]) -> list[dict[str, Any]]:
        """The most probable class of one image."""
        exponentials = np.exp(logits - logits.max())
        index = int(logits.argmax())
        return [{"label": self.labels[index], "probability": float(exponentials[index] / exponentials.sum())}]


def find_tag(name: str, precision: str) -> str:
    """The one published model that a tag, an architecture or `architecture@dataset` means; EngineError if none does."""
    entries = [model.manifest for model in store.published()]
    architecture, _, dataset = name.partition("@")
    found = [
        entry
        for entry in entries
        if entry.tag == name or (entry.architecture == architecture and dataset in {"", entry.dataset})
    ]
    if not found:
        checkpoint = f"checkpoints/{architecture}-{dataset or 'mnist5k'}"
        make = f"python -m training {architecture} --data mnist5k"
        if dataset not in {"", "mnist5k"}:
            make = f"python -m training import {architecture} --out {checkpoint}"
        raise EngineError(f"{name} is not published; make it: {make} && python -m training publish {checkpoint}")
    if len(found) > 1:
        raise EngineError(f"{name} may be {' or '.join(entry.tag for entry in found)}: name one")
    (entry,) = found
    if precision not in entry.precisions:
        make = f"python -m training publish CHECKPOINT --precisions fp32,{precision}"
        raise EngineError(f"{entry.tag} is not published in {precision}; make it: {make}")
    return entry.tag
