"""The fastest engine of a model on this machine, of those whose answers are torch's."""

from __future__ import annotations

import logging
from typing import Literal, get_args

from engines import records
from engines.records import EngineRecord
from engines.runtime import Measured, Runtime
from engines.store import PublishedModel

BATCH = 8
logger = logging.getLogger("bentoml.convserve")


def choose(model: PublishedModel, runtime: Runtime | Literal["auto"], precision: str) -> tuple[Runtime, str]:
    """The runtime and precision to serve with; "auto" leaves one or both to what was verified and measured here.

    Of the engines that `python -m engines verify` found faithful and `bench` has timed, the one with the most images a
    second at the largest batch up to 8; where there are none, OpenVINO and fp32.
    """
    default: tuple[Runtime, str] = (
        "openvino" if runtime == "auto" else runtime,
        "fp32" if precision == "auto" else precision,
    )
    if runtime == "null" or "auto" not in {runtime, precision}:
        return default
    runtimes: tuple[Measured, ...] = get_args(Measured) if runtime == "auto" else (runtime,)
    precisions = model.manifest.precisions if precision == "auto" else (precision,)
    found = [
        (candidate, record)
        for candidate in runtimes
        for wanted in precisions
        if wanted in model.manifest.precisions and (record := records.find(model, candidate, wanted))
    ]
    for candidate, record in found:
        if record.fidelity and record.fidelity.problem:
            logger.info("%s: not %s %s: %s", record.tag, candidate, record.precision, record.fidelity.problem)
    good = [(candidate, record) for candidate, record in found if rate(record)]
    if good:
        candidate, record = max(good, key=lambda engine: rate(engine[1]))
        return candidate, record.precision
    logger.info("%s: no engine is both verified and measured here: %s in %s", model.manifest.tag, *default)
    return default


def rate(record: EngineRecord) -> float:
    """Images a second at the largest batch up to 8; 0 if that is not known, or the answers are not good enough."""
    measured = [speed for speed in record.speeds if speed.batch <= BATCH]
    if not measured or record.fidelity is None or record.fidelity.problem:
        return 0
    return max(measured, key=lambda speed: speed.batch).images_per_s
