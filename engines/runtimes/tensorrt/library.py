"""NVIDIA's two libraries, TensorRT and TensorRT for RTX: their import, requirements, target hardware and messages."""

from __future__ import annotations

import threading
from functools import lru_cache
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Literal

from engines.runtimes.engine import EngineError
from engines.runtimes.tensorrt import gpu

if TYPE_CHECKING:
    import tensorrt_rtx as trt  # types of both libraries; a test lists those that TensorRT lacks

TensorRT = Literal["tensorrt", "tensorrt_rtx"]
PRECISIONS = ("fp32", "fp16", "int8")
DRIVER = 13000  # CUDA 13, which drivers support from version 580 on
OLDEST = (7, 5)  # oldest compute capability that both libraries support
TURING = "7.5"  # TensorRT for RTX has neither float32 linear layers nor INT8 convolutions for this compute capability
building = threading.RLock()  # held while a plan is built or loaded: the journal has the messages of one plan


def library(runtime: TensorRT) -> ModuleType:
    """Import NVIDIA's module. Raises EngineError if the module is not installed or cannot be loaded."""
    try:
        return import_module(runtime)
    except ModuleNotFoundError as error:
        raise EngineError(f"{runtime} is not installed here: pip install '.[{runtime.replace('_', '-')}]'") from error
    except (ImportError, OSError) as error:
        raise EngineError(f"{runtime} cannot be loaded: {error}") from error


def check(runtime: TensorRT) -> None:
    """Raise EngineError, naming the missing part, unless the library is installed and runs fp32 on this GPU."""
    device = gpu.device()
    trt = library(runtime)
    if gpu.driver() < DRIVER:
        raise EngineError(f"{runtime} needs NVIDIA's driver 580 or newer (`nvidia-smi` shows the installed one)")
    capability = gpu.capability()
    if device.compute_capability < OLDEST:
        raise EngineError(f"the GPU has compute capability {capability}, and {runtime} is for 7.5 and newer")
    if runtime == "tensorrt_rtx":
        known = capabilities_of(trt)
        if capability not in known:
            raise EngineError(
                f"the GPU has compute capability {capability}, and tensorrt_rtx is for {', '.join(known)}"
            )
        if capability == TURING:
            raise EngineError(f"tensorrt_rtx has only fp16 for compute capability {capability}: select both by name")


def capabilities_of(trt: ModuleType) -> dict[str, trt.ComputeCapability]:
    """Return the compute capabilities that TensorRT for RTX can build for, by name such as "8.9"."""
    members = trt.ComputeCapability.__members__.items()
    return {f"{name[2:-1]}.{name[-1]}": member for name, member in members if name.startswith("SM")}


def hardware(runtime: TensorRT) -> str:
    """Return the part of a plan's cache key that names the hardware: compute capability, and for TensorRT the GPU."""
    return gpu.capability() if runtime == "tensorrt_rtx" else f"{gpu.device().name}, {gpu.capability()}"


def content(memory: trt.IHostMemory) -> bytes:
    """Return a copy of memory that the library owns."""
    return bytes(memory)  # type: ignore[call-overload, no-any-return]  # a buffer, though its types do not say so


@lru_cache
def journal(runtime: TensorRT) -> Journal:
    """Return the journal of a library, which accepts one listener per process."""
    if not TYPE_CHECKING:
        trt = library(runtime)

    class Listener(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.journal = Journal(self)

        def log(self, severity: trt.ILogger.Severity, message: str) -> None:
            self.journal.note(int(severity), message)

    return Listener().journal


class Journal:
    """Error messages and layer descriptions that a library logged since `clear`."""

    def __init__(self, listener: trt.ILogger) -> None:
        self.listener = listener
        self.errors: list[str] = []
        self.layers = ""

    def clear(self) -> None:
        """Forget the messages of earlier calls."""
        self.errors, self.layers = [], ""

    def note(self, severity: int, message: str) -> None:
        """Record a log message with a severity from 0 (internal error) to 4 (verbose)."""
        if severity <= 1:
            self.errors.append(message)
        elif message.startswith("Layers:"):
            self.layers = message

    @property
    def reason(self) -> str:
        """Logged errors as one line, which explain a failed call."""
        return "; ".join(self.errors) or "no reason was reported"
