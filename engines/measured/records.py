"""Records of fidelity and speed: one file per engine and machine, kept beside the model store."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from itertools import product
from math import isfinite
from pathlib import Path
from typing import get_args

from pydantic import ValidationError

from engines.measured import jpegs
from engines.published import files, manifest, store
from engines.published.manifest import Record
from engines.published.store import PublishedModel
from engines.runtimes.machine import processor
from engines.runtimes.registry import RUNTIMES, Measured, gpu_of

UNBOUND_SHARE = 0.25  # an engine below this share of both peaks is limited by neither
TOP1_LOST = 0.005  # largest loss of top-1 accuracy of a faithful engine
AGREEING = 0.99  # least agreement with torch of a faithful engine
COMPARED_AT_BATCH = 8  # batch size at which engines are compared
logger = logging.getLogger("bentoml.convserve")


class Fidelity(Record):
    """Comparison of an engine's answers with expected ones: of fp32 torch on the published verification set.

    Shares of 0 to 1; top-1 and top-5 are None for sample pictures, whose classes are unknown. `logit_error` is the
    largest difference of any logit, over the largest logit.
    """

    images: int
    top1: float | None
    top5: float | None
    torch_top1: float | None
    agreement: float
    logit_error: float

    @property
    def problem(self) -> str | None:
        """Reason why `auto` must not choose an engine with these answers, or None."""
        if not isfinite(self.logit_error):
            return "some logits are not finite"
        if self.agreement < AGREEING:
            on = "images" if self.top1 is not None else "sample pictures"
            return f"it agrees with torch on {self.agreement:.1%} of {self.images} {on}"
        if self.top1 is not None and self.torch_top1 is not None and self.torch_top1 - self.top1 > TOP1_LOST:
            return f"its top-1 is {self.top1:.1%}, torch's {self.torch_top1:.1%}"
        return None


class ScaledFidelity(Fidelity):
    """Comparison of an engine's answers on JPEGs decoded scaled down with its own on the same JPEGs decoded in full."""

    @property
    def problem(self) -> str | None:
        """Reason why JPEGs must not be decoded scaled down for this engine, or None."""
        if not isfinite(self.logit_error):
            return "some logits are not finite"
        if self.agreement < AGREEING:
            return "too few of the same answers"
        return f"too few JPEGs, {jpegs.LEAST} are needed" if self.images < jpegs.LEAST else None


class Speed(Record):
    """Speed of one engine on batches of one size, one after another.

    Percentiles are of a batch's latency, by self-tuning of the faster half; `images_per_s` and `gmacs_per_s` (10^9
    multiply-accumulates) are computed from the median latency. `of_compute` and `of_bandwidth` are shares of the peaks
    of this machine's processor or GPU, or None for a precision without a measured peak. `memory_mb` is the growth of
    the process's memory, or of the GPU memory in use, when the engine is opened and runs the largest timed batch.
    """

    tag: str
    runtime: Measured
    precision: str
    streams: int
    threads: int | None
    batch: int
    images_per_s: float
    p50_ms: float
    p99_ms: float
    gmacs_per_s: float
    of_compute: float | None
    of_bandwidth: float | None
    memory_mb: float | None
    runs: int

    @property
    def bound(self) -> str | None:
        """Peak that limits the engine, arithmetic or bandwidth, with the share used; None if no peak is known."""
        if self.of_compute is None or self.of_bandwidth is None:
            return None
        if max(self.of_compute, self.of_bandwidth) < UNBOUND_SHARE:
            return f"by neither: {self.of_compute:.0%} of the arithmetic, {self.of_bandwidth:.0%} of the bandwidth"
        if self.of_compute >= self.of_bandwidth:
            return f"by arithmetic: {self.of_compute:.0%} of its peak"
        return f"by memory: {self.of_bandwidth:.0%} of its bandwidth"


class EngineRecord(Record):
    """Record of one engine; `scaled_jpeg` compares JPEGs decoded scaled down with the same JPEGs decoded in full."""

    tag: str
    # The file's hash and the runtime's version are in the record's file name only as a digest; a person who compares
    # records of two machines or two versions reads them here.
    file_sha256: str
    runtime: Measured
    runtime_version: str
    device: str
    precision: str
    fidelity: Fidelity | None = None
    scaled_jpeg: ScaledFidelity | None = None
    speeds: tuple[Speed, ...] = ()

    @property
    def problem(self) -> str | None:
        """Reason why `auto` must not choose this engine, or None."""
        if self.fidelity is None:
            return f"not verified here: python -m engines verify {self.tag}"
        if not self.decisive:
            batch = COMPARED_AT_BATCH
            return f"not timed here at batch {batch}: python -m engines bench {self.tag} --batches {batch}"
        return self.fidelity.problem

    @property
    def complete(self) -> bool:
        """True if this engine is known to be faithful and its speed is known, or if the engine is not faithful."""
        return self.fidelity is not None and (bool(self.decisive) or self.fidelity.problem is not None)

    @property
    def decisive(self) -> tuple[Speed, ...]:
        """Rows by which engines are compared: the rows of batch 8."""
        return tuple(speed for speed in self.speeds if speed.batch == COMPARED_AT_BATCH)


@cache
def version_of(library: str) -> str:
    """Return the installed version of a library. Raises PackageNotFoundError if there is none."""
    return version(library)


def path_of(model: PublishedModel, runtime: Measured, precision: str) -> Path:
    """Return the path of an engine's record, which need not exist."""
    key = "\n".join(key_of(model, runtime, precision))
    digest = hashlib.sha256(key.encode()).hexdigest()[:12]
    return folder() / f"{prefix_of(model)}{runtime}-{precision}-{digest}.json"


def folder() -> Path:
    """Return the folder of all records on this machine, which need not exist."""
    return store.root().parent / "convserve-records"


def prefix_of(model: PublishedModel) -> str:
    """Return the beginning of the names of a model's records."""
    return f"{model.manifest.tag.replace(':', '-')}-"


def times() -> dict[str, int]:
    """Return each record's file name and the time in ns of its last change; empty if the folder cannot be read."""
    with suppress(OSError):
        return {path.name: path.stat().st_ctime_ns for path in folder().glob("*.json")}
    return {}


def key_of(model: PublishedModel, runtime: Measured, precision: str) -> tuple[str, str, str, str, str]:
    """Return the identity of an engine: SHA-256 of its file, runtime, runtime version, device, precision."""
    library = RUNTIMES[runtime].library
    file = manifest.WEIGHTS if library == "torch" else manifest.GRAPHS[precision]
    return model.manifest.files[file].sha256, runtime, version_of(library), gpu_of(runtime) or processor(), precision


def find(model: PublishedModel, runtime: Measured, precision: str) -> EngineRecord | None:
    """Return an engine's record on this machine, or None without a valid record, the runtime, or the file."""
    try:
        return EngineRecord.model_validate_json(path_of(model, runtime, precision).read_bytes())
    except (FileNotFoundError, PackageNotFoundError, KeyError):
        return None
    except OSError as error:
        log_unreadable(folder() if not os.access(folder(), os.X_OK) else Path(error.filename), error.strerror)
        return None
    except ValidationError:
        tag = model.manifest.tag
        logger.warning("%s: the record of %s in %s is not readable by this version", tag, runtime, precision)
        return None


@cache  # one line a path, although records are looked up often
def log_unreadable(path: Path, reason: str | None) -> None:
    """Log a warning that a record, or the folder of all records, cannot be read."""
    logger.warning("%s cannot be read: %s", path, reason)


def find_all(model: PublishedModel) -> tuple[EngineRecord, ...]:
    """Return the records of all engines of a model on this machine, empty for OpenVINO engines without a record."""
    engines = product(get_args(Measured), manifest.GRAPHS)
    existing = [record for engine in engines if (record := find(model, *engine))]
    known = {record.precision for record in existing if record.runtime == "openvino"}
    empty = [record_of(model, "openvino", name) for name in model.manifest.precisions if name not in known]
    return (*existing, *empty)


def record_of(model: PublishedModel, runtime: Measured, precision: str) -> EngineRecord:
    """Return an empty record of an engine, with nothing verified or timed."""
    file_sha256, _, runtime_version, device, _ = key_of(model, runtime, precision)
    return EngineRecord(
        tag=model.manifest.tag,
        file_sha256=file_sha256,
        runtime=runtime,
        runtime_version=runtime_version,
        device=device,
        precision=precision,
    )


def keep(
    model: PublishedModel,
    runtime: Measured,
    precision: str,
    *,
    fidelity: Fidelity | None = None,
    scaled_jpeg: ScaledFidelity | None = None,
    speeds: Sequence[Speed] = (),
) -> EngineRecord:
    """Update an engine's record and return the record. Omitted parts are unchanged; `speeds` replaces all rows."""
    path = path_of(model, runtime, precision)
    parts = {"fidelity": fidelity, "scaled_jpeg": scaled_jpeg, "speeds": tuple(speeds)}
    changes = {name: value for name, value in parts.items() if value}
    with files.locked(path.with_suffix(".lock")):
        previous = find(model, runtime, precision) or record_of(model, runtime, precision)
        record = previous.model_copy(update=changes)
        files.write(path, record.model_dump_json(indent=1))
    return record
