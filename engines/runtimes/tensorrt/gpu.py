"""The NVIDIA GPU that engines run on, by NVIDIA's cuda-python."""

from __future__ import annotations

import logging
import os
import weakref
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

from engines.runtimes.engine import EngineError

if TYPE_CHECKING:
    from cuda.core import Device, Stream

logger = logging.getLogger("bentoml.convserve")


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


@cache
def name() -> str | None:
    """What it is called; None if there is none."""
    try:
        return str(device().name)
    except EngineError:
        return None


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
    """Bytes of the GPU's memory that are free, and all; RuntimeError if it cannot be told."""
    from cuda.bindings import runtime

    free, total = done(runtime.cudaMemGetInfo())
    return int(free), int(total)


def driver() -> int:
    """The newest CUDA that the driver has, such as 13000 for 13.0."""
    from cuda.bindings import runtime

    (version,) = done(runtime.cudaDriverGetVersion())
    return int(version)


def done(result: tuple[Any, ...]) -> tuple[Any, ...]:
    """What a call of CUDA's gave beside its status; RuntimeError if that is none of success."""
    from cuda.bindings import runtime

    status, *values = result
    if status != runtime.cudaError_t.cudaSuccess:
        raise RuntimeError(status.name)
    return tuple(values)


class Graph:
    """Recorded work of a stream. By CUDA's own calls: cuda.core 1.2 does not survive a recording that fails."""

    def __init__(self, recorded: Any) -> None:
        from cuda.bindings import runtime

        (self._executable,) = done(runtime.cudaGraphInstantiate(recorded, 0))
        weakref.finalize(self, runtime.cudaGraphExecDestroy, self._executable)

    def launch(self, stream: Stream) -> None:
        """Enqueue it."""
        from cuda.bindings import runtime

        done(runtime.cudaGraphLaunch(self._executable, int(stream.handle)))


def record(stream: Stream, enqueue: Callable[[], None]) -> Graph | None:
    """The graph of what `enqueue` enqueues on the stream, which does not run; None, and why is logged, if it cannot."""
    from cuda.bindings import runtime

    handle = int(stream.handle)
    done(runtime.cudaStreamBeginCapture(handle, runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal))
    problem: Exception | None = None
    try:
        enqueue()
    except Exception as error:  # CUDA's have no public class
        problem = error
    ended = runtime.cudaStreamEndCapture(handle)  # whatever happened: else the stream stays in it
    try:
        (recorded,) = done(ended)
    except RuntimeError as error:
        logger.warning("there is no CUDA graph: %s", problem or error)
        return None
    try:
        if problem:
            raise problem
        return Graph(recorded)
    except Exception as error:
        logger.warning("there is no CUDA graph: %s", error)
        return None
    finally:
        runtime.cudaGraphDestroy(recorded)
