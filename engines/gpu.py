"""The NVIDIA GPU that engines run on, by NVIDIA's cuda-python."""

from __future__ import annotations

import os
from functools import cache
from typing import TYPE_CHECKING

from engines.engine import EngineError

if TYPE_CHECKING:
    from cuda.core import Device


@cache
def device() -> Device:
    """The first GPU that may be used; EngineError says what is missing."""
    try:
        from cuda.core import Device
    except ModuleNotFoundError as error:
        raise EngineError("cuda-python is not installed: pip install '.[tensorrt]' or '.[tensorrt-rtx]'") from error
    try:
        devices = Device.get_all_devices()
    except Exception as error:  # no driver, one that is too old, no GPU: each is another class, and some not public
        raise EngineError(f"there is no NVIDIA GPU, or no driver for it (`nvidia-smi` tells): {error}") from error
    if not devices:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        raise EngineError(f"no NVIDIA GPU may be used: CUDA_VISIBLE_DEVICES is {visible!r}")
    return devices[0]


def capability() -> str:
    """The GPU's compute capability, such as "8.9"."""
    return "{}.{}".format(*device().compute_capability)


def free_bytes() -> int:
    """What is free of the GPU's memory."""
    return memory()[0]


def used_mb() -> float:
    """What is used of the GPU's memory, by all processes, in MB."""
    free, total = memory()
    return (total - free) / 1e6


def memory() -> tuple[int, int]:
    """Bytes of the GPU's memory that are free, and all; EngineError if it cannot be told."""
    from cuda.bindings import runtime

    status, free, total = runtime.cudaMemGetInfo()
    if status != runtime.cudaError_t.cudaSuccess:
        raise EngineError(f"the GPU's memory cannot be told: {status.name}")
    return int(free), int(total)
