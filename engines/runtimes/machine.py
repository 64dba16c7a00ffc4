"""Which machine this is."""

from __future__ import annotations

import os
import platform
from functools import cache
from pathlib import Path


@cache
def processor() -> str:
    """The processor's name and how many cores of it may be used."""
    name = field(Path("/proc/cpuinfo"), "model name") or platform.processor() or platform.machine()
    return f"{name}, {cores()} cores"


@cache
def accelerator() -> str | None:
    """The first NVIDIA GPU's name, if there is one that may be used."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") in {"", "-1"}:
        return None
    names = (field(path, "Model") for path in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")))
    return next((name for name in names if name), None)


def cores() -> int:
    """How many this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def field(path: Path, name: str) -> str | None:
    """The first value of `name: value` in a file of the kernel's, if it is there."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return None
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(name)), None)
