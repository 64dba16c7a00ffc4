"""How much memory an engine takes, seen in a process of its own."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path

from engines.runtime import EngineSpec, open_engine
from engines.store import PublishedModel


def added_mb(model: PublishedModel, spec: EngineSpec, batch: int) -> float:
    """What opening the engine, and an inference of `batch` images, adds to a process, in MB."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(grown_mb, model, spec, batch).result()


def grown_mb(model: PublishedModel, spec: EngineSpec, batch: int) -> float:
    """By how much this process grew; its library is not counted."""
    import_module(f"engines.{spec.runtime.removesuffix('_compile')}")
    before = resident_mb()
    engine = open_engine(model, spec, (batch,))
    grown = resident_mb() - before
    del engine
    return grown


def resident_mb() -> float:
    """Memory of this process, in MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 1e6
