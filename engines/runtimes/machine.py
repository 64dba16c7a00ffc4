"""Names of this machine's processor and GPU, and the number of usable cores."""

from __future__ import annotations

import os
import platform
from functools import cache
from pathlib import Path


@cache
def processor() -> str:
    """Return the processor's name and the number of cores that this process may use."""
    name = field(Path("/proc/cpuinfo"), "model name") or platform.processor() or platform.machine()
    return f"{name}, {cores()} cores"


@cache
def accelerator() -> str | None:
    """Return the name of the machine's first NVIDIA GPU, or None if it has none or CUDA_VISIBLE_DEVICES hides all."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") in {"", "-1"}:
        return None
    names = (field(path, "Model") for path in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")))
    return next((name for name in names if name), None)


def gpus() -> list[str]:
    """Return the NVIDIA GPUs that this process may use, by the names that CUDA_VISIBLE_DEVICES has for them."""
    if not accelerator():
        return []
    if visible := os.environ.get("CUDA_VISIBLE_DEVICES"):
        return visible.split(",")
    return [str(number) for number, _ in enumerate(Path("/proc/driver/nvidia/gpus").iterdir())]


def cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def field(path: Path, name: str) -> str | None:
    """Return the first value of a line `name: value` in a file of the kernel, or None without such a line."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return None
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(name)), None)
