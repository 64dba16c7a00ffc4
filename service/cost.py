"""Predicted duration of a batch: from the engine's benchmark, corrected by observed durations."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Iterable, Mapping
from math import inf

import numpy as np

from engines.measured.records import EngineRecord
from engines.runtimes.engine import Engine, GpuEngine
from engines.runtimes.registry import EngineSpec

LEARNING = 0.1  # share by which one observation moves the correction
OUTLIER = 4.0  # times the prediction: a larger ratio comes from a pause of the machine, not from the engine
WORTH = 0.95  # share of the best rate at which a batch is large enough
# On cores that also decode, each batch is held up some milliseconds that no benchmark shows; 16 clients of resnet50 got
# 43 to 46 answers/s by batches of 19 ms, 48 to 49 by 74 ms; in bf16 80 by 10 ms, 90 by 36 ms, 92 to 93 by 70 ms.
SHORTEST_S = 0.04
TRIED_S = 0.2  # seconds for which an engine without a benchmark is timed


def batch_sizes(most: int) -> list[int]:
    """Return the powers of two up to `most`, and `most` itself."""
    return sorted({1 << power for power in range(most.bit_length())} | {most})


class BatchCost:
    """Predicted seconds of device time by batch size, interpolated linearly between the known sizes.

    Observed durations correct all sizes by one factor: most of what slows an engine down while it serves does so at
    every size. `shortest_s` is for the rest, which holds up each batch alike. `best_batch` is the smallest of 1, 2, 4 …
    `max_batch` with at least 95 % of the best rate that takes `shortest_s`, or the largest of that rate: a larger batch
    would only keep other images waiting. `uncorrected_s` is the time of one image without any correction.
    """

    def __init__(self, seconds: Mapping[int, float], max_batch: int, shortest_s: float = 0.0) -> None:
        """Start from known seconds by batch size; at least one size is needed."""
        self._sizes = sorted(seconds)
        self._seconds = [seconds[size] for size in self._sizes]
        self._correction = 1.0
        self._forgot_at = -inf
        self.uncorrected_s = self(1)  # never changed
        sizes = batch_sizes(max_batch)
        rates = [size / self(size) for size in sizes]
        worth = [size for size, rate in zip(sizes, rates, strict=True) if rate >= WORTH * max(rates)]
        self.best_batch = next((size for size in worth if self(size) >= shortest_s), worth[-1])

    def __call__(self, batch: int) -> float:
        """Return the predicted seconds of a batch. Outside the known sizes, time per image is constant."""
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

    def uncorrected_backlog_s(self, images: int) -> float:
        """Return the seconds of `images` images on an idle device, without any correction."""
        return self.uncorrected_s if images == 1 else self.uncorrected_s * self.backlog_s(images) / self(1)

    def observe(self, batch: int, seconds: float) -> None:
        """Correct the predictions by the measured seconds of one batch."""
        ratio = min(seconds / self(batch), OUTLIER)
        self._correction *= 1 + LEARNING * (ratio - 1)

    def forget(self, now: float) -> None:
        """Move the correction back towards the benchmark, at most once a second.

        Without this, an engine whose requests are refused for its predicted cost would never be observed again.
        """
        if now > self._forgot_at + 1:
            self._forgot_at = now
            self._correction += LEARNING * (1 - self._correction)

    def backlog_s(self, images: int) -> float:
        """Return the predicted seconds that `images` waiting images will take, in batches of `best_batch`."""
        batches, rest = divmod(images, self.best_batch)
        return batches * self(self.best_batch) + (self(rest) if rest else 0.0)


class WaitFactor:
    """Factor from predicted waits to those of the last batches, 1 at least.

    A prediction counts the images that wait. Those that will come for other engines meanwhile, and run before because
    their engines have used less of the device, show only in what is observed.
    """

    def __init__(self) -> None:
        self._waited_s = self._predicted_s = 0.0

    def __call__(self) -> float:
        """Return the factor by which a predicted wait is multiplied."""
        return min(max(1.0, self._waited_s / self._predicted_s), OUTLIER) if self._predicted_s else 1.0

    def observe(self, predicted_s: float, waited_s: float) -> None:
        """Count the wait of one image, and those before a little less: long waits weigh most.

        An image that was to wait for nothing counts for nothing: many waits of the event loop's fraction of a
        millisecond would outweigh the predictions.
        """
        if predicted_s <= 0:
            return
        self._predicted_s = (1 - LEARNING) * self._predicted_s + predicted_s
        self._waited_s = (1 - LEARNING) * self._waited_s + waited_s


def cost_of(
    engine: Engine, spec: EngineSpec, records: Iterable[EngineRecord], shape: tuple[int, int, int], max_batch: int
) -> BatchCost:
    """Return the cost of an engine from its benchmark on this machine, or from timing the engine now.

    `shape` is the shape of an image, (height, width, channels).
    """
    speeds = (speed for record in records for speed in record.speeds)
    measured = {
        speed.batch: speed.p50_ms / 1000
        for speed in speeds
        if EngineSpec(speed.runtime, speed.precision, speed.streams, speed.threads) == spec
    }
    shortest_s = 0.0 if isinstance(engine, GpuEngine) else SHORTEST_S
    return BatchCost(measured or time_engine(engine, shape, max_batch), max_batch, shortest_s)


def time_engine(engine: Engine, shape: tuple[int, int, int], max_batch: int) -> dict[int, float]:
    """Time an engine and return seconds by batch size, doubling the size until a fifth of a second has passed."""
    seconds: dict[int, float] = {}
    size, began = 1, time.perf_counter()
    while size <= max_batch and time.perf_counter() - began < TRIED_S:
        pixels = np.zeros((size, *shape), np.uint8)
        engine.infer(pixels)  # the first inference at a size may compile
        since = time.perf_counter()
        engine.infer(pixels)
        seconds[size] = time.perf_counter() - since
        size *= 2
    return seconds
