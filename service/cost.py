"""How long an engine will take for a batch: known from its benchmark, corrected by what is seen."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Iterable, Mapping
from math import inf

import numpy as np

from engines.measured.records import EngineRecord
from engines.runtimes.engine import Engine
from engines.runtimes.registry import EngineSpec

LEARNING = 0.1  # how far one observation moves the correction
OUTLIER = 4.0  # times what was predicted: more says something of a pause, not of the engine
WORTH = 0.95  # of the best rate: a batch that reaches it is large enough
TRIED_S = 0.2  # how long an engine of which nothing is known is tried


def batch_sizes(most: int) -> list[int]:
    """Powers of two, and the largest."""
    return sorted({1 << power for power in range(most.bit_length())} | {most})


class BatchCost:
    """Predicted seconds of device time by batch size, linear between the sizes that are known.

    What is seen corrects all sizes alike: what slows an engine down while it serves, such as decoding beside it, does
    so at every size. `best_batch` is the smallest of 1, 2, 4 … `max_batch` that has nearly the best rate: a larger
    batch would only keep others waiting.
    """

    def __init__(self, seconds: Mapping[int, float], max_batch: int) -> None:
        """Start from what is known: seconds by batch size, one size at least."""
        self._sizes = sorted(seconds)
        self._seconds = [seconds[size] for size in self._sizes]
        self._correction = 1.0
        self._forgot_at = -inf
        self.alone_s = self(1)  # of one image, uncorrected for ever
        sizes = batch_sizes(max_batch)
        rates = [size / self(size) for size in sizes]
        self.best_batch = next(size for size, rate in zip(sizes, rates, strict=True) if rate >= WORTH * max(rates))

    def __call__(self, batch: int) -> float:
        """Seconds that a batch will take; outside the known sizes, an image as long as in the nearest."""
        sizes, seconds = self._sizes, self._seconds
        right = bisect_left(sizes, batch)
        if right == len(sizes) or (sizes[right] != batch and right == 0):
            near = min(right, len(sizes) - 1)
            return self._correction * seconds[near] * batch / sizes[near]
        if sizes[right] == batch:
            return self._correction * seconds[right]
        left = right - 1
        weight = (batch - sizes[left]) / (sizes[right] - sizes[left])
        return self._correction * (seconds[left] + weight * (seconds[right] - seconds[left]))

    def observe(self, batch: int, seconds: float) -> None:
        """A batch took so long."""
        ratio = min(seconds / self(batch), OUTLIER)
        self._correction *= 1 + LEARNING * (ratio - 1)

    def forget(self, now: float) -> None:
        """Trust the benchmark more, once a second at most: what is refused for its cost would never show another."""
        if now > self._forgot_at + 1:
            self._forgot_at = now
            self._correction += LEARNING * (1 - self._correction)

    def backlog_s(self, images: int) -> float:
        """Seconds that so many waiting images will take."""
        batches, rest = divmod(images, self.best_batch)
        return batches * self(self.best_batch) + (self(rest) if rest else 0.0)


def known_cost(
    engine: Engine, spec: EngineSpec, records: Iterable[EngineRecord], shape: tuple[int, int, int], max_batch: int
) -> BatchCost:
    """Of an engine: the medians of its benchmark on this machine; without one, what it takes now.

    `shape` is an image's, (height, width, channels).
    """
    speeds = (speed for record in records for speed in record.speeds)
    measured = {
        speed.batch: speed.p50_ms / 1000
        for speed in speeds
        if EngineSpec(speed.runtime, speed.precision, speed.streams, speed.threads) == spec
    }
    return BatchCost(measured or tried(engine, shape, max_batch), max_batch)


def tried(engine: Engine, shape: tuple[int, int, int], max_batch: int) -> dict[int, float]:
    """Seconds by batch size, doubled until a fifth of a second has gone."""
    seconds: dict[int, float] = {}
    size, began = 1, time.perf_counter()
    while size <= max_batch and time.perf_counter() - began < TRIED_S:
        pixels = np.zeros((size, *shape), np.uint8)
        engine.infer(pixels)  # the first of a size may compile
        since = time.perf_counter()
        engine.infer(pixels)
        seconds[size] = time.perf_counter() - since
        size *= 2
    return seconds
