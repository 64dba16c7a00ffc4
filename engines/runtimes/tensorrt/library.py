"""NVIDIA's two libraries, TensorRT and TensorRT for RTX: what they need, and what they say."""

from __future__ import annotations

import threading
from functools import lru_cache
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Literal

from engines.runtimes.engine import EngineError
from engines.runtimes.tensorrt import gpu

if TYPE_CHECKING:
    import tensorrt_rtx as trt  # what both have; a test compares it with the other's, and says what it alone has

TensorRT = Literal["tensorrt", "tensorrt_rtx"]
PRECISIONS = ("fp32", "fp16", "int8")
DRIVER = 13000  # CUDA 13, which drivers have from 580 on
OLDEST = (7, 5)  # compute capability
TURING = "7.5"  # for which TensorRT for RTX has no float32 linear layers, and no INT8
building = threading.RLock()  # of one plan at a time, whose messages the journal has


def library(runtime: TensorRT) -> ModuleType:
    """NVIDIA's module; EngineError if it is not installed, or cannot be loaded."""
    try:
        return import_module(runtime)
    except ModuleNotFoundError as error:
        raise EngineError(f"{runtime} is not installed here: pip install '.[{runtime.replace('_', '-')}]'") from error
    except (ImportError, OSError) as error:
        raise EngineError(f"{runtime} cannot be loaded: {error}") from error


def check(runtime: TensorRT) -> None:
    """EngineError, with what is missing, unless the library is here and a GPU that it runs fp32 on."""
    device = gpu.device()
    trt = library(runtime)
    if gpu.driver() < DRIVER:
        raise EngineError(f"{runtime} needs NVIDIA's driver 580 or newer, which `nvidia-smi` tells")
    found = gpu.capability()
    if device.compute_capability < OLDEST:
        raise EngineError(f"the GPU has compute capability {found}, and {runtime} is for 7.5 and newer")
    if runtime == "tensorrt_rtx":
        known = capabilities_of(trt)
        if found not in known:
            raise EngineError(f"the GPU has compute capability {found}, and tensorrt_rtx is for {', '.join(known)}")
        if found == TURING:
            raise EngineError(f"tensorrt_rtx has only fp16 for compute capability {found}: name both to have it")


def capabilities_of(trt: ModuleType) -> dict[str, trt.ComputeCapability]:
    """Those that TensorRT for RTX knows, such as "8.9"."""
    members = trt.ComputeCapability.__members__.items()
    return {f"{name[2:-1]}.{name[-1]}": member for name, member in members if name.startswith("SM")}


def hardware(runtime: TensorRT) -> str:
    """What this machine's plans are for."""
    return gpu.capability() if runtime == "tensorrt_rtx" else f"{gpu.device().name}, {gpu.capability()}"


def content(memory: trt.IHostMemory) -> bytes:
    """A copy of the library's memory."""
    return bytes(memory)  # type: ignore[call-overload, no-any-return]  # a buffer, which its types do not say


@lru_cache
def journal(runtime: TensorRT) -> Journal:
    """What the library tells, which takes one listener a process."""
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
    """Errors and the layers of what was built last."""

    def __init__(self, listener: trt.ILogger) -> None:
        self.listener = listener
        self.errors: list[str] = []
        self.layers = ""

    def clear(self) -> None:
        """Before something is tried."""
        self.errors, self.layers = [], ""

    def note(self, severity: int, message: str) -> None:
        """Of a severity from 0, an internal error, to 4, what only its makers read."""
        if severity <= 1:
            self.errors.append(message)
        elif message.startswith("Layers:"):
            self.layers = message

    @property
    def reason(self) -> str:
        """Why what was tried failed."""
        return "; ".join(self.errors) or "it does not say why"
