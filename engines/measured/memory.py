"""Memory of an engine, measured in a process of its own."""

from __future__ import annotations

import os
import sys
from concurrent.futures import ProcessPoolExecutor
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path

from engines.published.store import PublishedModel
from engines.runtimes.engine import Engine, EngineError
from engines.runtimes.registry import RUNTIMES, EngineSpec, gpu_of, open_engine
from engines.runtimes.tensorrt import gpu


def added_mb(model: PublishedModel, spec: EngineSpec, batch: int) -> float | None:
    """Return the MB that opening an engine and inferring `batch` images adds to a process, or None if either fails.

    For an engine on a GPU, return the growth of the GPU's memory in use, by all processes.
    """
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        try:
            return pool.submit(grown_mb, model, spec, batch).result()
        except (EngineError, RuntimeError) as error:
            print(f"memory of {model.manifest.tag} in {spec.precision}: {error}", file=sys.stderr)
            return None


def grown_mb(model: PublishedModel, spec: EngineSpec, batch: int) -> float:
    """Return the growth of the memory in use, in MB, as `opened` does."""
    return opened(model, spec, batch)[1]


def opened(model: PublishedModel, spec: EngineSpec, batch: int) -> tuple[Engine, float]:
    """Open an engine, run `batch` images, and return the engine and the growth of the memory in use, in MB.

    The import of the runtime's library is not counted. Raises EngineError if the runtime cannot run the model.
    """
    module = import_module(f"engines.runtimes.{RUNTIMES[spec.runtime].module}")
    if spec.runtime == "openvino":
        module.supported(spec.precision)  # loads OpenVINO's CPU plugin, which all engines share
    used_mb = gpu.used_mb if gpu_of(spec.runtime) else resident_mb
    before = used_mb()
    engine = open_engine(model, spec, (batch,), batch)
    return engine, used_mb() - before


def resident_mb() -> float:
    """Return the resident memory of this process, in MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6
