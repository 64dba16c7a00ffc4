"""How fast engines are by themselves, without HTTP, in turn on the same pixels."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from engines.engine import Engine, EngineError
from engines.manifest import Record
from engines.runtime import Runtime, open_engine
from engines.store import PublishedModel

ROUNDS = 3


class Speed(Record):
    """One engine on batches of one size, one after another.

    Percentiles are of a batch's latency; `images_per_s` and `gmacs_per_s` (10^9 multiply-accumulates) are over all
    `runs`; `memory_mb` is what opening the engine, and its first inference, added to the process.
    """

    tag: str
    runtime: str
    precision: str
    batch: int
    images_per_s: float
    p50_ms: float
    p99_ms: float
    gmacs_per_s: float
    memory_mb: float
    runs: int


def bench(
    model: PublishedModel, engines: Sequence[tuple[Runtime, str]], batches: Sequence[int], seconds: float
) -> list[Speed]:
    """Time each engine, a runtime and a precision, for `seconds` at each batch size, after a warm-up.

    In three rounds, in each of which every engine has its turn. Engines that cannot be opened are told on stderr;
    EngineError if none can be.
    """
    shape = model.manifest.preprocess.shape
    pixels = {batch: np.random.default_rng(0).integers(0, 256, (batch, *shape), dtype=np.uint8) for batch in batches}
    opened: list[tuple[Engine, float]] = []
    for runtime, precision in engines:
        before = resident_mb()
        try:
            engine = open_engine(model, runtime, precision)
        except EngineError as error:
            print(f"left out: {error}", file=sys.stderr)
            continue
        engine.infer(pixels[max(batches)])
        opened.append((engine, resident_mb() - before))
    if not opened:
        raise EngineError(f"{model.manifest.tag}: none of these engines can be opened")
    times: dict[tuple[int, int], list[float]] = {}
    for _ in range(ROUNDS):
        for batch in batches:
            for number, (engine, _) in enumerate(opened):
                run_for(engine, pixels[batch], seconds / ROUNDS / 10)
                times.setdefault((number, batch), []).extend(run_for(engine, pixels[batch], seconds / ROUNDS))
    return [
        speed_of(model, *opened[number], batch, np.array(taken))
        for (number, batch), taken in sorted(times.items(), key=lambda item: item[0])
    ]


def speed_of(model: PublishedModel, engine: Engine, memory_mb: float, batch: int, taken: NDArray[np.float64]) -> Speed:
    """What the seconds that each batch has taken amount to."""
    p50, p99 = np.percentile(taken, (50, 99))
    images_per_s = batch * len(taken) / taken.sum()
    return Speed(
        tag=model.manifest.tag,
        runtime=engine.runtime,
        precision=engine.precision,
        batch=batch,
        images_per_s=round(images_per_s, 1),
        p50_ms=round(p50 * 1e3, 3),
        p99_ms=round(p99 * 1e3, 3),
        gmacs_per_s=round(images_per_s * model.manifest.complexity.macs / 1e9, 2),
        memory_mb=round(memory_mb, 1),
        runs=len(taken),
    )


def run_for(engine: Engine, pixels: NDArray[np.uint8], seconds: float) -> list[float]:
    """Seconds that each inference took."""
    times: list[float] = []
    end = time.perf_counter() + seconds
    while not times or time.perf_counter() < end:
        started = time.perf_counter()
        engine.infer(pixels)
        times.append(time.perf_counter() - started)
    return times


def resident_mb() -> float:
    """Memory of this process, in MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 1e6
