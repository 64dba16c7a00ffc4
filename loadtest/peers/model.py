"""Model that every peer runs: the same file, preprocessing and form of answer, in one precision or OpenVINO's own."""

from __future__ import annotations

import io
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from engines.measured import records
from engines.measured.select_engine import choose
from engines.published import store
from engines.published.store import PublishedModel
from engines.runtimes.engine import GPU_MAX_BATCH, EngineError
from engines.runtimes.registry import graph_of, open_engine
from loadtest.peers import AS_INSTALLED

DEVICE = os.environ.get("PEER_DEVICE")  # of a torch network: cuda, in tests cpu; None for OpenVINO
MAX_BATCH = GPU_MAX_BATCH if DEVICE == "cuda" else 32  # convserve's default, for every peer that batches
BATCHES = tuple(2**power for power in range(MAX_BATCH.bit_length()))  # what convserve runs before it serves
WORKERS = int(os.environ.get("PEER_WORKERS", "1"))  # processes of a peer, each with its network

Infer = Callable[[NDArray[np.uint8]], NDArray[np.float32]]


class PeerModel:
    """Published model of the tag `$PEER_MODEL`, run in `$PEER_PRECISION`; `infer` returns its logits."""

    def __init__(self, batches: Sequence[int] = BATCHES) -> None:
        """Load the model, and run it once at each of these batch sizes unless it is served as installed."""
        tag = os.environ["PEER_MODEL"]
        precision = os.environ["PEER_PRECISION"]
        (model,) = (model for model in store.published() if model.manifest.tag == tag)
        self.labels, self._preprocess = model.manifest.labels, model.manifest.preprocess
        if DEVICE:
            from loadtest.peers.torch_network import infer_torch

            self.infer = infer_torch(model, precision, DEVICE, batches)
        elif precision == AS_INSTALLED:
            self.infer = infer_as_installed(model)
        else:
            self.infer = infer_tuned(model, precision, batches)

    def pixels(self, picture: Image.Image) -> NDArray[np.uint8]:
        """Return the pixels of one picture, (H, W, C), as the model expects them."""
        return self._preprocess(picture)

    def top(self, logits: NDArray[np.float32]) -> list[dict[str, Any]]:
        """Return the most probable class of one image, as the list of predictions in an answer."""
        exponentials = np.exp(logits - logits.max())
        index = int(logits.argmax())
        return [{"label": self.labels[index], "probability": float(exponentials[index] / exponentials.sum())}]


def infer_tuned(model: PublishedModel, precision: str, batches: Sequence[int]) -> Infer:
    """Return the function from pixels to logits of convserve's engine, after a run of each batch size."""
    # As in convserve, a record of this machine may choose several streams.
    spec = choose(records.find_all(model), "openvino", precision)
    return open_engine(model, spec, batches).infer


def infer_as_installed(model: PublishedModel) -> Infer:
    """Return the function from pixels to logits of OpenVINO as its README has it, without any option."""
    import openvino  # not before `engines`, which switches OpenVINO's reports off

    compiled = openvino.Core().compile_model(graph_of(model, "fp32"), "CPU")

    def infer(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        logits: NDArray[np.float32] = compiled({0: pixels})[0]
        return logits

    return infer


class PeerPhotos:
    """Photos, each with the label that the engine predicts for the photo alone; `bodies` repeats without end."""

    def __init__(self, model: PeerModel, paths: list[Path]) -> None:
        self._model = model
        bodies = [path.read_bytes() for path in paths]
        pixels = [self.decode(body) for body in bodies]
        self.labels = [model.top(model.infer(one[None])[0])[0]["label"] for one in pixels]
        self.labelled = list(zip(pixels, self.labels, strict=True))
        self.bodies: Iterator[tuple[bytes, str]] = itertools.cycle(zip(bodies, self.labels, strict=True))

    def decode(self, body: bytes) -> NDArray[np.uint8]:
        """Decode and resize one JPEG to pixels."""
        return self._model.pixels(Image.open(io.BytesIO(body)))


def find_tag(name: str, precision: str) -> str:
    """Return the tag of the one published model of a tag, an architecture or `architecture@dataset`.

    Raises EngineError, with the command that publishes the model, if there is none, or if there are several.
    """
    manifests = [model.manifest for model in store.published()]
    architecture, _, dataset = name.partition("@")
    matches = [
        manifest
        for manifest in manifests
        if manifest.tag == name or (manifest.architecture == architecture and dataset in {"", manifest.dataset})
    ]
    if not matches:
        checkpoint = f"checkpoints/{architecture}-{dataset or 'mnist5k'}"
        make = f"python -m training {architecture} --data mnist5k"
        if dataset not in {"", "mnist5k"}:
            make = f"python -m training import {architecture} --out {checkpoint}"
        raise EngineError(f"{name} is not published; make it: {make} && python -m training publish {checkpoint}")
    if len(matches) > 1:
        raise EngineError(f"{name} may be {' or '.join(manifest.tag for manifest in matches)}: name one")
    (manifest,) = matches
    if precision not in manifest.precisions:
        make = f"python -m training publish CHECKPOINT --precisions fp32,{precision}"
        raise EngineError(f"{manifest.tag} is not published in {precision}; make it: {make}")
    return manifest.tag
