"""Choice of the engine that serves a model."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from importlib import import_module
from typing import Literal

from engines.measured.records import COMPARED_AT_BATCH, EngineRecord, Speed
from engines.published.store import PublishedModel
from engines.runtimes.engine import EngineError
from engines.runtimes.registry import NO_PRECISION, RUNTIMES, EngineSpec, Measured, Runtime, check, preferred

ON_GPU: tuple[Measured, ...] = ("tensorrt", "tensorrt_rtx", "torch", "torch_compile")
STREAMS_GAIN = 1.1  # with a smaller gain, one stream is kept, since a single image then uses all threads
PRECISION_GAIN = 1.05  # with a smaller gain, fp32 is kept
logger = logging.getLogger("bentoml.convserve")


def choose(records: Sequence[EngineRecord], runtime: Runtime | Literal["auto"], precision: str) -> EngineSpec:
    """Return the engine to serve with: as requested, or for "auto" the fastest engine recorded as faithful.

    `records` are the records of one model. The fastest engine has the most images a second at batch 8 among the engines
    that `python -m engines verify` recorded as faithful and `python -m engines bench` has timed; several streams must
    gain more than a tenth, and more than a single image loses by them, and another precision than fp32 more than a
    twentieth. Without such an engine, "auto" is fp32 on TensorRT or torch on a GPU, else on OpenVINO.
    """
    explicit = "auto" not in {runtime, precision}
    default = preferred("fp32" if precision == "auto" else precision) if runtime == "auto" else runtime
    speeds = [
        speed
        for record in candidates(records, runtime, precision)
        if explicit or not record.problem
        for speed in record.decisive
        if pays(speed, record)
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


def explain(records: Sequence[EngineRecord], runtime: Runtime | Literal["auto"], precision: str) -> str:
    """Return the reason for the choice of `choose` as one line, with the speeds of the engines that were compared."""
    chosen = choose(records, runtime, precision)
    if RUNTIMES[chosen.runtime].precisions == NO_PRECISION:
        return f"nothing to tune: {chosen.runtime} computes nothing"
    faithful = [record for record in candidates(records, runtime, precision) if not record.problem]
    rates: dict[tuple[Runtime, str, int], float] = {
        (speed.runtime, speed.precision, speed.streams): speed.images_per_s
        for record in faithful
        for speed in record.decisive
    }
    best = rates.pop((chosen.runtime, chosen.precision, chosen.streams), None)
    if best is None:
        return f"{named(*chosen[:3])}: no engine has been found faithful and timed here yet"
    others = [f"{named(*engine)} {written(images_per_s)}" for engine, images_per_s in rates.items()]
    return "; ".join([f"{named(*chosen[:3])}: {written(best)} images/s at batch {COMPARED_AT_BATCH}", *others])


def written(images_per_s: float) -> str:
    """Return a rate with three digits or more."""
    return f"{images_per_s:,.0f}" if images_per_s >= 100 else f"{images_per_s:.3g}"


def named(runtime: str, precision: str, streams: int = 1) -> str:
    """Return the name of an engine for people, such as "openvino int8, 2 streams"."""
    return f"{runtime} {precision}" + (f", {streams} streams" if streams > 1 else "")


def runnable(model: PublishedModel, runtime: Runtime | Literal["auto"], precision: str) -> list[tuple[Measured, str]]:
    """Return runtime and precision of each engine of a model that a server on this machine may choose from.

    The engine that serves a model without records is the first. ONNX Runtime is not among the engines, nor any CPU
    runtime on a machine with a usable GPU, unless `runtime` names the runtime.
    """
    default = preferred("fp32") if runtime == "auto" else runtime
    if default == "null" or default == "paced":  # noqa: PLR1714 (for mypy)
        return []
    others = [other for other in ON_GPU if can_run(other)] if runtime == "auto" and RUNTIMES[default].on_gpu else []
    return [
        (name, supported)
        for name in dict.fromkeys([default, *others])
        for supported in RUNTIMES[name].precisions
        if precision in {"auto", supported} and has_precision(model, name, supported)
    ]


def can_run(runtime: Measured) -> bool:
    """Return True if a GPU runtime can run on this machine."""
    try:
        check(runtime)
    except EngineError:
        return False
    return True


def has_precision(model: PublishedModel, runtime: Measured, precision: str) -> bool:
    """Return True if a model can run in a precision on a runtime and this machine's processor."""
    if RUNTIMES[runtime].library == "torch":
        return True
    if runtime == "openvino" and not import_module("engines.runtimes.openvino").supported(precision):
        return False
    return precision in model.manifest.precisions


def log_passed_over(records: Sequence[EngineRecord], runtime: Runtime | Literal["auto"], precision: str) -> None:
    """Log the reason for each engine that "auto" must not choose."""
    if "auto" in {runtime, precision}:
        for record in candidates(records, runtime, precision):
            if record.problem:
                logger.info("%s: not %s in %s: %s", record.tag, record.runtime, record.precision, record.problem)


def pays(speed: Speed, record: EngineRecord) -> bool:
    """Return True for one stream, and for several if they gain more at batch 8 than they lose at batch 1."""
    rates = {(row.streams, row.batch): row.images_per_s for row in record.speeds}
    known = [(streams, batch) for streams in (1, speed.streams) for batch in (1, COMPARED_AT_BATCH)]
    if speed.streams == 1 or not rates.keys() >= set(known):
        return True
    one, one_batch, several, several_batch = (rates[key] for key in known)
    return several_batch / one_batch > one / several


def rate(speed: Speed) -> float:
    """Return images a second, divided by the gain that several streams and other precisions than fp32 need."""
    needed = (STREAMS_GAIN if speed.streams > 1 else 1) * (PRECISION_GAIN if speed.precision != "fp32" else 1)
    return speed.images_per_s / needed
