"""Benchmark of engines without HTTP: all engines run in turn on the same pixels."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from engines.measured.memory import added_mb
from engines.measured.peak import Peak
from engines.measured.records import Speed
from engines.published.store import PublishedModel
from engines.runtimes.engine import Engine, EngineError
from engines.runtimes.registry import EngineSpec, gpu_of, open_engine

ROUNDS = 3


def bench(
    model: PublishedModel,
    specs: Sequence[EngineSpec],
    batches: Sequence[int],
    seconds: float,
    peaks: Mapping[str | None, Peak],
) -> list[Speed]:
    """Time each engine for `seconds` at each batch size, after a warm-up.

    Every engine runs in each of three rounds. `peaks` are those of GPUs by name, and of the processor by None. Engines
    that cannot be opened are reported on stderr; raises EngineError if no engine can be opened.
    """
    shape = model.manifest.preprocess.shape
    pixels = {batch: np.random.default_rng(0).integers(0, 256, (batch, *shape), dtype=np.uint8) for batch in batches}
    opened: dict[EngineSpec, Engine] = {}
    for spec in specs:
        try:
            opened[spec] = open_engine(model, spec, batches, max(batches))
        except EngineError as error:
            print(f"left out: {error}", file=sys.stderr)
    if not opened:
        raise EngineError(f"{model.manifest.tag}: none of these engines can be opened")
    memory = {spec: added_mb(model, spec, max(batches)) for spec in opened}
    times: dict[tuple[EngineSpec, int], list[float]] = {(spec, batch): [] for batch in batches for spec in opened}
    for _ in range(ROUNDS):
        for spec, batch in times:
            run_for(opened[spec], pixels[batch], seconds / ROUNDS / 10)
            times[spec, batch] += run_for(opened[spec], pixels[batch], seconds / ROUNDS)
    return [
        speed_of(model, spec, memory[spec], peaks.get(gpu_of(spec.runtime)), batch, np.array(times[spec, batch]))
        for spec in opened
        for batch in batches
    ]


def speed_of(
    model: PublishedModel,
    spec: EngineSpec,
    memory_mb: float | None,
    peak: Peak | None,
    batch: int,
    times: NDArray[np.float64],
) -> Speed:
    """Return the speed of an engine, computed from `times`, the seconds of each batch; no shares without `peak`."""
    cost = model.manifest.complexity
    p50, p99 = np.percentile(times, (50, 99))
    images_per_s = batch / float(p50)
    shares = peak.shares(cost, spec.precision, batch, images_per_s) if peak else None
    return Speed(
        tag=model.manifest.tag,
        **spec._asdict(),
        batch=batch,
        images_per_s=images_per_s,
        p50_ms=p50 * 1e3,
        p99_ms=p99 * 1e3,
        gmacs_per_s=images_per_s * cost.macs / 1e9,
        of_compute=shares and shares[0],
        of_bandwidth=shares and shares[1],
        memory_mb=memory_mb,
        runs=len(times),
    )


def run_for(engine: Engine, pixels: NDArray[np.uint8], seconds: float) -> list[float]:
    """Run inferences for `seconds`, at least one, and return the seconds that each took."""
    times: list[float] = []
    end = time.perf_counter() + seconds
    while not times or time.perf_counter() < end:
        started = time.perf_counter()
        engine.infer(pixels)
        times.append(time.perf_counter() - started)
    return times
