"""How fast an engine is by itself, without HTTP."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from engines.engine import Engine


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Of batches one after another: percentiles of a batch's latency, and images a second over all of them."""

    batch: int
    p50_ms: float
    p99_ms: float
    images_per_s: float
    runs: int


def measure(engine: Engine, shape: tuple[int, int, int], batch: int, seconds: float) -> Speed:
    """Time `engine` on random pixels of `shape` for `seconds`, after a tenth of that to warm up."""
    pixels = np.random.default_rng(0).integers(0, 256, (batch, *shape), dtype=np.uint8)
    run_for(engine, pixels, seconds / 10)
    times = run_for(engine, pixels, seconds)
    p50, p99 = np.percentile(times, (50, 99))
    return Speed(
        batch=batch, p50_ms=p50 * 1e3, p99_ms=p99 * 1e3, images_per_s=batch * len(times) / sum(times), runs=len(times)
    )


def run_for(engine: Engine, pixels: np.ndarray[tuple[int, ...], np.dtype[np.uint8]], seconds: float) -> list[float]:
    """Seconds that each inference took."""
    times: list[float] = []
    end = time.perf_counter() + seconds
    while not times or time.perf_counter() < end:
        started = time.perf_counter()
        engine.infer(pixels)
        times.append(time.perf_counter() - started)
    return times
