"""How much memory an engine takes, seen in a process of its own."""

from __future__ import annotations

import os
import sys
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path

from engines.runtime import EngineSpec, open_engine
from engines.store import PublishedModel


def added_mb(model: PublishedModel, spec: EngineSpec, batch: int) -> float | None:
    """What opening the engine, and an inference of `batch` images, adds to a process, in MB; None if it dies."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        try:
            return pool.submit(grown_mb, model, spec, batch).result()
        except BrokenProcessPool as error:
            print(f"memory of {model.manifest.tag} in {spec.precision}: {error}", file=sys.stderr)
            return None


def grown_mb(model: PublishedModel, spec: EngineSpec, batch: int) -> float:
    """By how much this process grew; importing the library is not counted."""
    module = import_module(f"engines.{spec.runtime.removesuffix('_compile')}")
    if spec.runtime == "openvino":
        module.supported(spec.precision)  # loads what any engine needs
    before = resident_mb()
    engine = open_engine(model, spec, (batch,))
    grown = resident_mb() - before
    del engine
    return grown


def resident_mb() -> float:
    """Memory of this process, in MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6
