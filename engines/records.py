"""What was found of an engine on this machine: kept beside the model store, by file, runtime, processor, precision."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from itertools import product
from pathlib import Path
from typing import get_args

from pydantic import ValidationError

from engines import files, manifest, store
from engines.machine import processor
from engines.manifest import Record
from engines.runtime import Measured
from engines.store import PublishedModel

TOP1_LOST = 0.005  # more than that is too much
AGREEING = 0.99  # less than that is too little


class Fidelity(Record):
    """How an engine's answers compare with fp32 torch's, on the published verification set.

    Shares of 0 to 1; top-1 and top-5 are None for sample pictures, of which no class is known. `logit_error` is the
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
        """Why these answers are not good enough to be given unasked."""
        if self.agreement < AGREEING:
            on = "images" if self.top1 is not None else "sample pictures"
            return f"it agrees with torch on {self.agreement:.1%} of {self.images} {on}"
        if self.top1 is not None and self.torch_top1 is not None and self.torch_top1 - self.top1 > TOP1_LOST:
            return f"its top-1 is {self.top1:.1%}, torch's {self.torch_top1:.1%}"
        return None


class Speed(Record):
    """One engine on batches of one size, one after another.

    Percentiles are of a batch's latency; `images_per_s` and `gmacs_per_s` (10^9 multiply-accumulates) are over all
    `runs`. `of_compute` and `of_bandwidth` are shares of this machine's peaks, None where the precision has none;
    `memory_mb` is what opening the engine, and an inference of the largest batch, adds to a process.
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
    memory_mb: float
    runs: int


class EngineRecord(Record):
    """What was found, and of which engine."""

    tag: str
    file_sha256: str
    runtime: Measured
    runtime_version: str
    device: str
    precision: str
    fidelity: Fidelity | None = None
    speeds: tuple[Speed, ...] = ()

    @property
    def problem(self) -> str | None:
        """Why this engine is not taken unasked."""
        if self.fidelity is None:
            return f"not verified here: python -m engines verify {self.tag}"
        if not self.speeds:
            return f"not timed here: python -m engines bench {self.tag}"
        return self.fidelity.problem


def path_of(model: PublishedModel, runtime: Measured, precision: str) -> Path:
    """Where the record of an engine is, or would be."""
    key = "\n".join(key_of(model, runtime, precision))
    name = (
        f"{model.manifest.tag.replace(':', '-')}-{runtime}-{precision}-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
    )
    return store.root().parent / "convserve-records" / f"{name}.json"


def key_of(model: PublishedModel, runtime: Measured, precision: str) -> tuple[str, str, str, str, str]:
    """File, runtime and its version, device, precision: if any of them is another, so is the engine."""
    library = runtime.removesuffix("_compile")
    file = manifest.WEIGHTS if library == "torch" else manifest.GRAPHS[precision]
    return model.manifest.files[file].sha256, runtime, version(library), processor(), precision


def find(model: PublishedModel, runtime: Measured, precision: str) -> EngineRecord | None:
    """The record of an engine on this machine; None without a valid one, or the runtime, or the precision's file."""
    try:
        return EngineRecord.model_validate_json(path_of(model, runtime, precision).read_bytes())
    except (OSError, ValidationError, PackageNotFoundError, KeyError):
        return None


def find_all(model: PublishedModel) -> tuple[EngineRecord, ...]:
    """The records of every engine of a model on this machine."""
    engines = product(get_args(Measured), manifest.GRAPHS)
    return tuple(record for engine in engines if (record := find(model, *engine)))


def keep(
    model: PublishedModel,
    runtime: Measured,
    precision: str,
    *,
    fidelity: Fidelity | None = None,
    speeds: Sequence[Speed] = (),
) -> EngineRecord:
    """Write an engine's record; what is not given, or not measured this time, stays as it was."""
    file_sha256, _, runtime_version, device, _ = key_of(model, runtime, precision)
    before = find(model, runtime, precision)
    rows = {(row.streams, row.threads, row.batch): row for row in (*(before.speeds if before else ()), *speeds)}
    record = EngineRecord(
        tag=model.manifest.tag,
        file_sha256=file_sha256,
        runtime=runtime,
        runtime_version=runtime_version,
        device=device,
        precision=precision,
        fidelity=fidelity or (before.fidelity if before else None),
        speeds=tuple(rows.values()),
    )
    files.write(path_of(model, runtime, precision), record.model_dump_json(indent=1).encode())
    return record
