"""Scoring of pictures: decoded by processes, classified by one engine, answered in order."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from queue import SimpleQueue
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from engines.measured import records
from engines.measured.select_engine import choose
from engines.published.manifest import Record
from engines.published.store import PublishedModel
from engines.runtimes.engine import GPU_MAX_BATCH, MAX_BATCH, EngineError
from engines.runtimes.machine import cores
from engines.runtimes.registry import RUNTIMES, EngineSpec, open_engine
from engines.scoring.decoders import DecodingPool, Errors

Logits = NDArray[np.float32]
Both = tuple[Logits, NDArray[np.float32] | None]
FEATURES_IN = "fp32"  # precision of embeddings
logger = logging.getLogger("bentoml.convserve")


class Job(Record):
    """Job of a run: weights, precision ("auto" until an engine is chosen), classes an answer, and embeddings or not."""

    model: str
    precision: str
    top_k: int
    embeddings: bool


@dataclass(frozen=True, slots=True)
class Class:
    """Class of a picture with its softmax probability."""

    index: int
    label: str
    probability: float


class ScoredPicture(NamedTuple):
    """Picture with its answer: the most probable classes first, or the error of a broken picture."""

    path: str
    top: list[Class]
    embedding: NDArray[np.float32] | None
    error: str | None


class Running(NamedTuple):
    """Batch that is being decoded or answered, with its slot in the shared memory."""

    slot: int
    decoding: Future[Errors]
    answering: Future[list[ScoredPicture]]


class OpenedEngine(NamedTuple):
    """Engine that is ready to score: its function from pixels to logits and features, and how to call it."""

    infer: Callable[[NDArray[np.uint8]], Both]
    name: str
    lanes: int
    batch: int


def precision_of(model: PublishedModel, requested: str) -> str:
    """Return the precision of the engine that this machine's records choose, where `requested` may be "auto".

    Raises EngineError if the model was not published in the precision.
    """
    chosen = choose(records.find_all(model), "auto", requested).precision
    if chosen not in model.manifest.precisions:
        there = ", ".join(model.manifest.precisions)
        raise EngineError(f"{model.manifest.tag} is published in {there}, not in {chosen}")
    return chosen


def opened(model: PublishedModel, job: Job) -> OpenedEngine:
    """Open the best engine of a job's precision: the one that a server here would choose.

    Raises EngineError or ManifestError if there is none.
    """
    if job.embeddings:
        from engines.scoring.features import FeatureEngine

        both = FeatureEngine(model)
        return OpenedEngine(both.infer_both, f"{both.runtime} {both.precision}", both.lanes, MAX_BATCH)
    known = records.find_all(model)
    spec = choose(known, "auto", job.precision)
    try:
        return opened_by(model, spec)
    except EngineError as error:
        if spec.runtime == "openvino":
            raise
        logger.warning("%s falls back to openvino: %s", job.model, error)
    return opened_by(model, choose(known, "openvino", job.precision))


def opened_by(model: PublishedModel, spec: EngineSpec) -> OpenedEngine:
    """Open an engine for batches of the size with the best rate in its benchmark, else of the default size."""
    speeds = {
        speed.batch: speed.images_per_s
        for record in records.find_all(model)
        for speed in record.speeds
        if (speed.runtime, speed.precision, speed.streams, speed.threads) == spec
    }
    default = GPU_MAX_BATCH if RUNTIMES[spec.runtime].on_gpu else MAX_BATCH
    batch = max(speeds, key=lambda size: speeds[size], default=default)
    engine = open_engine(model, spec, batches=(batch,), max_batch=batch)
    name = f"{engine.runtime} {engine.precision}"
    return OpenedEngine(lambda pixels: (engine.infer(pixels), None), name, engine.lanes, batch)


class Scorer:
    """Engine of a model with processes that decode for it. At most `runs` calls of `answers` go on at once."""

    def __init__(self, model: PublishedModel, job: Job, processes: int | None = None, runs: int = 1) -> None:
        """Open the engine, and start `processes` decoders, by default one a core. Raises EngineError, ManifestError."""
        self._top_k, self._labels = job.top_k, model.manifest.labels
        self.engine = opened(model, job)
        processes = processes or cores()
        each = processes + 2 * self.engine.lanes  # a batch for each decoder, one that waits and one that runs
        self._slots: SimpleQueue[range] = SimpleQueue()
        for run in range(runs):
            self._slots.put(range(run * each, (run + 1) * each))
        self._stack = ExitStack()
        self._decoders = self._stack.enter_context(
            DecodingPool(model.manifest.preprocess, self.engine.batch, runs * each, processes)
        )
        self._device = self._stack.enter_context(ThreadPoolExecutor(self.engine.lanes, "device"))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def answers(self, paths: Iterable[str]) -> Generator[ScoredPicture, None, None]:
        """Yield the answer to each picture, in order, while later ones are read and decoded.

        Raises RuntimeError if the inference fails.
        """
        slots = self._slots.get()
        free, running = deque(slots), deque[Running]()
        remaining = iter(paths)
        try:
            while batch := list(islice(remaining, self.engine.batch)):
                if not free:
                    yield from finished(running, free)
                slot = free.popleft()
                decoding = self._decoders.submit(slot, batch)
                running.append(Running(slot, decoding, self._device.submit(self._batch, decoding, slot, batch)))
            while running:
                yield from finished(running, free)
        finally:  # of a run that is given up, the slots are free once nobody writes into them
            for one in running:
                one.answering.cancel()
                one.decoding.cancel()
            wait([one.decoding for one in running])
            wait([one.answering for one in running])
            self._slots.put(slots)

    def _batch(self, decoding: Future[Errors], slot: int, paths: Sequence[str]) -> list[ScoredPicture]:
        """Wait for the pictures in a slot, run them, and return their answers."""
        errors = self._decoders.errors_of(decoding, slot, paths)
        logits, features = self.engine.infer(self._decoders.pixels[slot, : len(paths)])
        answers = []
        for row, (path, error, top) in enumerate(zip(paths, errors, self._most_probable(logits), strict=True)):
            embedding = None if features is None or error else features[row].copy()
            answers.append(ScoredPicture(path, [] if error else top, embedding, error))
        return answers

    def _most_probable(self, logits: Logits) -> list[list[Class]]:
        """Return the most probable classes of each row of logits, (N, classes)."""
        best = np.argsort(-logits, axis=1, kind="stable")[:, : self._top_k]
        exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
        shares = np.take_along_axis(exponentials, best, axis=1) / exponentials.sum(axis=1, keepdims=True)
        return [
            [Class(index, self._labels[index], share) for index, share in zip(indices, row, strict=True)]
            for indices, row in zip(best.tolist(), shares.tolist(), strict=True)
        ]


def finished(running: deque[Running], free: deque[int]) -> Iterator[ScoredPicture]:
    """Yield the answers of the oldest batch, and free its slot."""
    oldest = running.popleft()
    answers = oldest.answering.result()
    free.append(oldest.slot)
    yield from answers
