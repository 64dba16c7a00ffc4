"""What was found of an engine on this machine: kept beside the model store, by file, runtime, processor, precision."""

from __future__ import annotations

import hashlib
import os
import platform
import tempfile
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from pydantic import ValidationError

from engines import manifest, store
from engines.bench import Speed
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


class EngineRecord(Record):
    """What was found, and of which engine."""

    tag: str
    file_sha256: str
    runtime: str
    runtime_version: str
    device: str
    precision: str
    fidelity: Fidelity | None = None
    speeds: tuple[Speed, ...] = ()


@cache
def processor() -> str:
    """The processor's name and how many cores of it may be used."""
    info = Path("/proc/cpuinfo")
    names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    name = names[0] if names else platform.processor() or platform.machine()
    return f"{name}, {len(os.sched_getaffinity(0))} cores"


def path_of(model: PublishedModel, runtime: Measured, precision: str) -> Path:
    """Where the record of an engine is, or would be."""
    key = "\n".join(key_of(model, runtime, precision))
    name = (
        f"{model.manifest.tag.replace(':', '-')}-{runtime}-{precision}-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
    )
    return store.root().parent / "convserve-records" / f"{name}.json"


def key_of(model: PublishedModel, runtime: Measured, precision: str) -> tuple[str, str, str, str, str]:
    """File, runtime and its version, device, precision: if any of them is another, so is the engine."""
    file = manifest.WEIGHTS if runtime == "torch" else manifest.GRAPHS[precision]
    return model.manifest.files[file].sha256, runtime, version(runtime), processor(), precision


def find(model: PublishedModel, runtime: Measured, precision: str) -> EngineRecord | None:
    """The record of an engine on this machine, if there is a valid one and the runtime is installed."""
    try:
        return EngineRecord.model_validate_json(path_of(model, runtime, precision).read_bytes())
    except (OSError, ValidationError, PackageNotFoundError):
        return None


def keep(
    model: PublishedModel,
    runtime: Measured,
    precision: str,
    *,
    fidelity: Fidelity | None = None,
    speeds: tuple[Speed, ...] = (),
) -> EngineRecord:
    """Write an engine's record, whole; what is not given stays as it was."""
    file_sha256, _, runtime_version, device, _ = key_of(model, runtime, precision)
    before = find(model, runtime, precision)
    record = EngineRecord(
        tag=model.manifest.tag,
        file_sha256=file_sha256,
        runtime=runtime,
        runtime_version=runtime_version,
        device=device,
        precision=precision,
        fidelity=fidelity or (before.fidelity if before else None),
        speeds=speeds or (before.speeds if before else ()),
    )
    path = path_of(model, runtime, precision)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".new", delete=False) as file:
        file.write(record.model_dump_json(indent=1))
    os.replace(file.name, path)
    return record
