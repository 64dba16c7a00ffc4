"""NVIDIA GPU that TensorRT's engines run on, through NVIDIA's cuda-python."""

from __future__ import annotations

import logging
import os
import weakref
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

from engines.runtimes.engine import EngineError
from engines.runtimes.lanes import recording
from engines.runtimes.machine import accelerator

if TYPE_CHECKING:
    from cuda.core import Device, Stream

LOST = {  # CUDA's errors after which a process must end, as the documentation says of most
    f"cudaError{name}"
    for name in (
        *("ECCUncorrectable", "NvlinkUncorrectable", "Contained", "IllegalAddress", "LaunchTimeout"),
        *("ContextIsDestroyed", "Assert", "HardwareStackError", "IllegalInstruction", "MisalignedAddress"),
        *("InvalidAddressSpace", "InvalidPc", "LaunchFailure", "TensorMemoryLeak", "MpsClientTerminated"),
        *("ExternalDevice", "Unknown"),
    )
}
NO_GPU = "there is no NVIDIA GPU, or no driver for it (`nvidia-smi` shows both)"
logger = logging.getLogger("bentoml.convserve")


@cache
def device() -> Device:
    """Return the first usable GPU. Raises EngineError, naming the missing part, if there is none."""
    try:
        from cuda.core import Device
    except ModuleNotFoundError as error:
        missing = "cuda-python is not installed: pip install '.[tensorrt]' or '.[tensorrt-rtx]'"
        raise EngineError(missing if accelerator() else f"{NO_GPU}, and {missing}") from error
    try:
        devices = Device.get_all_devices()
    except Exception as error:  # no driver, an old driver and no GPU raise different classes, some of them private
        logger.debug("%s: %s", NO_GPU, error)
        # Long texts on missing drivers explain nothing on a machine without a GPU.
        raise EngineError(f"{NO_GPU}: {str(error).rstrip('.')}" if accelerator() else NO_GPU) from error
    if not devices:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        raise EngineError(f"no NVIDIA GPU may be used: CUDA_VISIBLE_DEVICES is {visible!r}")
    return devices[0]


@cache
def name() -> str | None:
    """Return the name of the first usable GPU, or None."""
    try:
        return str(device().name)
    except EngineError:
        return None


def capability() -> str:
    """Return the GPU's compute capability, such as "8.9"."""
    return "{}.{}".format(*device().compute_capability)


def free_bytes() -> int:
    """Return the number of free bytes of GPU memory."""
    return memory()[0]


def used_mb() -> float:
    """Return the GPU memory that all processes use, in MB (10^6 bytes)."""
    free, total = memory()
    return (total - free) / 1e6


def memory() -> tuple[int, int]:
    """Return the free and the total bytes of GPU memory. Raises RuntimeError if CUDA reports an error.

    Gives back what deleted engines used: cuda.core has CUDA keep freed memory for its next allocation, and others,
    TensorRT itself among them, would find too little.
    """
    from cuda.bindings import runtime

    with recording:
        checked(runtime.cudaDeviceSynchronize())  # memory counts as used until the GPU has come to its release
    status, *pool = runtime.cudaDeviceGetDefaultMemPool(*checked(runtime.cudaGetDevice()))
    if status == runtime.cudaError_t.cudaSuccess:  # some virtual GPUs have no pool
        checked(runtime.cudaMemPoolTrimTo(*pool, 0))
    free, total = checked(runtime.cudaMemGetInfo())
    return int(free), int(total)


def driver() -> int:
    """Return the newest CUDA version that the driver supports, such as 13000 for 13.0."""
    from cuda.bindings import runtime

    (version,) = checked(runtime.cudaDriverGetVersion())
    return int(version)


def checked(result: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return the values of a CUDA call after its status. Raises RuntimeError unless the status is success."""
    from cuda.bindings import runtime

    status, *values = result
    if status != runtime.cudaError_t.cudaSuccess:
        raise RuntimeError(status.name)
    return tuple(values)


def copy(target: int, source: int, size: int, stream: int) -> None:
    """Enqueue on a stream, by its handle, a copy of bytes between addresses of the GPU or of pinned memory."""
    from cuda.bindings import runtime

    checked(runtime.cudaMemcpyAsync(target, source, size, runtime.cudaMemcpyKind.cudaMemcpyDefault, stream))


def clear(target: int, size: int, stream: int) -> None:
    """Enqueue on a stream, by its handle, the writing of zeros to memory of the GPU."""
    from cuda.bindings import runtime

    checked(runtime.cudaMemsetAsync(target, 0, size, stream))


def context_lost() -> bool:
    """Return True if CUDA can no longer run anything in this process, as after an access to memory that is not there.

    CUDA then answers every call with the error, and only another process can use the GPU. Starts CUDA if nothing has
    done so before; False without CUDA.
    """
    try:
        from cuda.bindings import runtime

        (status,) = runtime.cudaStreamQuery(0)  # waits for nothing, so that a recording of another thread goes on
    except Exception:  # no cuda-python, or no driver for it
        return False
    return status.name in LOST


class Graph:
    """Recorded work of a stream, made by CUDA's own calls because a failed recording crashes cuda.core 1.2."""

    def __init__(self, recorded: Any) -> None:
        from cuda.bindings import runtime

        (self._executable,) = checked(runtime.cudaGraphInstantiate(recorded, 0))
        weakref.finalize(self, runtime.cudaGraphExecDestroy, self._executable)

    def launch(self, stream: Stream) -> None:
        """Enqueue the recorded work on a stream."""
        from cuda.bindings import runtime

        checked(runtime.cudaGraphLaunch(self._executable, int(stream.handle)))


def record(stream: Stream, enqueue: Callable[[], None]) -> Graph | None:
    """Record the work that `enqueue` enqueues on the stream, without running it.

    Logs the reason and returns None if the work cannot be recorded. Tried twice, since a destructor in another thread,
    which no lock holds back, may wait for the whole GPU, and end the first recording.
    """
    from cuda.bindings import runtime

    handle = int(stream.handle)
    for attempt in range(2):
        checked(runtime.cudaStreamBeginCapture(handle, runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal))
        try:
            return captured(handle, enqueue)
        except Exception as error:  # cuda.core's errors have no public class
            if attempt:
                logger.warning("there is no CUDA graph: %s", error)
    return None


def captured(handle: int, enqueue: Callable[[], None]) -> Graph:
    """Return the work that `enqueue` enqueues on a stream that records; raises nearly anything if there is none."""
    from cuda.bindings import runtime

    problem: Exception | None = None
    try:
        enqueue()
    except Exception as error:  # cuda.core's errors have no public class
        problem = error
    ended = runtime.cudaStreamEndCapture(handle)  # even after an error: otherwise the stream keeps recording
    try:
        (recorded,) = checked(ended)
    except RuntimeError as error:
        raise problem or error from None
    try:
        if problem:
            raise problem
        return Graph(recorded)
    finally:
        runtime.cudaGraphDestroy(recorded)
