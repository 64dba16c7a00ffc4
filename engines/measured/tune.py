"""Verification and timing of one engine in a process of its own, which the server stops while it has requests.

The server starts `python -m engines.measured.tune TAG RUNTIME PRECISION MAX_BATCH`. The process prints its outcome as
JSON, and ends early if the server ends.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from collections.abc import Sequence
from threading import Thread

import numpy as np

from engines.measured import memory, records
from engines.measured.bench import run_for, speed_of
from engines.measured.records import COMPARED_AT_BATCH, Speed
from engines.measured.verify import verify
from engines.published import manifest, store
from engines.published.manifest import ManifestError, Record
from engines.published.store import PublishedModel
from engines.runtimes.engine import Engine, EngineError
from engines.runtimes.machine import cores
from engines.runtimes.registry import EngineSpec, Measured

SIZES = (32, 128)  # images; batches are timed at 1 and 8 too, and times between are interpolated
ROUNDS = 5
SET_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of Linux's prctl
SECONDS = 0.1  # least time for one size of batch in one round


class Outcome(Record):
    """Outcome of a trial: the reason why the engine cannot run or is not faithful, if any, and processor seconds."""

    error: str | None = None
    problem: str | None = None
    cpu_s: float


def main(arguments: Sequence[str]) -> None:
    """Try the engine that the arguments name, and print an outcome as JSON."""
    tag, runtime, precision, max_batch = arguments
    end_with_server()
    try:
        folder = store.folder_of(tag)
        model = PublishedModel(folder, manifest.load(folder))
        problem = tune(model, EngineSpec(runtime, precision), int(max_batch))  # type: ignore[arg-type]
        outcome = Outcome(problem=problem, cpu_s=time.process_time())
    except (EngineError, ManifestError, RuntimeError, OSError) as error:
        outcome = Outcome(error=str(error), cpu_s=time.process_time())
    print(outcome.model_dump_json(), flush=True)


def end_with_server() -> None:
    """Let this process end with the server, even if the server is killed, and even while this process is stopped."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)
    Thread(target=exit_at_end_of_input, daemon=True).start()  # elsewhere, and if the server has gone already


def exit_at_end_of_input() -> None:
    """Exit once the standard input is closed."""
    sys.stdin.read()
    os._exit(1)


def tune(model: PublishedModel, tried: EngineSpec, max_batch: int) -> str | None:
    """Verify an engine, time the engine if its answers are faithful, and keep the records of both.

    At most one engine is open at a time. Returns the reason why the engine is not faithful, or None. Raises EngineError
    if the engine cannot be opened.
    """
    assert tried.runtime != "null"
    assert tried.runtime != "paced"
    runtime, precision = tried.runtime, tried.precision
    sizes = {1, COMPARED_AT_BATCH, *(size for size in SIZES if size <= max_batch), max_batch}
    speeds: list[Speed] = []
    memory_mb = 0.0
    for streams in streams_of(runtime):
        spec = EngineSpec(runtime, precision, streams)
        engine, grown_mb = memory.opened(model, spec, max(sizes))
        memory_mb = max(memory_mb, grown_mb)  # the second engine reuses memory of the first
        if not speeds:
            fidelity = verify(model, engine)
            records.keep(model, runtime, precision, fidelity=fidelity)
            if fidelity.problem:
                return fidelity.problem
        times = time_batches(engine, model.manifest.preprocess.shape, sorted(sizes))
        del engine
        speeds += [speed_of(model, spec, memory_mb, None, batch, np.array(times[batch])) for batch in times]
    records.keep(model, runtime, precision, speeds=speeds)
    return None


def streams_of(runtime: Measured) -> tuple[int, ...]:
    """Return the numbers of streams to try: one and two in OpenVINO on several cores, else one."""
    return (1, 2) if runtime == "openvino" and cores() > 1 else (1,)


def time_batches(engine: Engine, shape: tuple[int, int, int], batches: Sequence[int]) -> dict[int, list[float]]:
    """Return the seconds of each batch by its size, in rounds over all sizes after a warm-up.

    The slower half is left out: other programs and requests have disturbed those batches.
    """
    random = np.random.default_rng(0)
    pixels = {batch: random.integers(0, 256, (batch, *shape), dtype=np.uint8) for batch in batches}
    times: dict[int, list[float]] = {batch: [] for batch in batches}
    for batch in batches:
        engine.infer(pixels[batch])
    for _ in range(ROUNDS):
        for batch in batches:
            times[batch] += run_for(engine, pixels[batch], SECONDS)
    return {batch: sorted(seconds)[: -(-len(seconds) // 2)] for batch, seconds in times.items()}


if __name__ == "__main__":
    main(sys.argv[1:])
