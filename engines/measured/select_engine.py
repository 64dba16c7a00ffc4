"""Choice of the engine that serves a model."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Literal

from engines.measured.records import EngineRecord, Speed
from engines.runtimes.registry import EngineSpec, Runtime, preferred

STREAMS_GAIN = 1.1  # less is no reason to give a single image only a part of the threads
logger = logging.getLogger("bentoml.convserve")


def choose(records: Sequence[EngineRecord], runtime: Runtime | Literal["auto"], precision: str) -> EngineSpec:
    """Return the engine to serve with: as requested, and for "auto" the fastest that is known to be faithful.

    `records` are those of one model. Of the engines that `python -m engines verify` found faithful and `bench` has
    timed, it is the one with the most images a second at batch 8, with several streams only if they gain more than a
    tenth; where there are none, fp32, of TensorRT or torch on a GPU, else of OpenVINO.
    """
    explicit = "auto" not in {runtime, precision}
    usual = preferred("fp32" if precision == "auto" else precision) if runtime == "auto" else runtime
    candidates = [
        record for record in records if runtime in {"auto", record.runtime} and precision in {"auto", record.precision}
    ]
    for record in candidates:
        if record.problem and not explicit:
            logger.info("%s: not %s in %s: %s", record.tag, record.runtime, record.precision, record.problem)
    speeds = [speed for record in candidates if explicit or not record.problem for speed in record.decisive]
    if not speeds:
        return EngineSpec(usual, "fp32" if precision == "auto" else precision)
    fastest = max(speeds, key=rate)
    return EngineSpec(fastest.runtime, fastest.precision, fastest.streams, fastest.threads)


def rate(speed: Speed) -> float:
    """Return images a second, reduced for several streams by the gain they must exceed."""
    return speed.images_per_s / (STREAMS_GAIN if speed.streams > 1 else 1)
