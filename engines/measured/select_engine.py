"""Choice of the engine that serves a model."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Literal

from engines.measured.records import EngineRecord, Speed
from engines.runtimes.registry import EngineSpec, Runtime, preferred

STREAMS_GAIN = 1.1  # with a smaller gain, one stream is kept, since a single image then uses all threads
logger = logging.getLogger("bentoml.convserve")


def choose(records: Sequence[EngineRecord], runtime: Runtime | Literal["auto"], precision: str) -> EngineSpec:
    """Return the engine to serve with: as requested, or for "auto" the fastest engine recorded as faithful.

    `records` are the records of one model. The fastest engine has the most images a second at batch 8 among the engines
    that `python -m engines verify` recorded as faithful and `python -m engines bench` has timed; several streams must
    gain more than a tenth. Without such an engine, "auto" is fp32 on TensorRT or torch on a GPU, else on OpenVINO.
    """
    explicit = "auto" not in {runtime, precision}
    default = preferred("fp32" if precision == "auto" else precision) if runtime == "auto" else runtime
    speeds = [
        speed
        for record in candidates(records, runtime, precision)
        if explicit or not record.problem
        for speed in record.decisive
    ]
    if not speeds:
        return EngineSpec(default, "fp32" if precision == "auto" else precision)
    fastest = max(speeds, key=rate)
    return EngineSpec(fastest.runtime, fastest.precision, fastest.streams, fastest.threads)


def candidates(
    records: Sequence[EngineRecord], runtime: Runtime | Literal["auto"], precision: str
) -> list[EngineRecord]:
    """Return the records of the engines that a runtime and a precision, or "auto", leave to choose from."""
    return [
        record for record in records if runtime in {"auto", record.runtime} and precision in {"auto", record.precision}
    ]


def log_passed_over(records: Sequence[EngineRecord], runtime: Runtime | Literal["auto"], precision: str) -> None:
    """Log the reason for each engine that "auto" must not choose."""
    if "auto" in {runtime, precision}:
        for record in candidates(records, runtime, precision):
            if record.problem:
                logger.info("%s: not %s in %s: %s", record.tag, record.runtime, record.precision, record.problem)


def rate(speed: Speed) -> float:
    """Return images a second, reduced for several streams by the gain they must exceed."""
    return speed.images_per_s / (STREAMS_GAIN if speed.streams > 1 else 1)
