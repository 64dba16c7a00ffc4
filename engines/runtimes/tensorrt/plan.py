"""From ONNX to a plan, which TensorRT runs: by TensorRT, or by TensorRT for RTX.

TensorRT tries kernels on a GPU, and its plans are for that kind of GPU. TensorRT for RTX builds on any machine for the
compute capabilities that are named, and makes the kernels where the plan is run.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Literal, NamedTuple

from engines.runtimes import cache
from engines.runtimes.engine import EngineError
from engines.runtimes.tensorrt import gpu

if TYPE_CHECKING:
    import tensorrt_rtx as trt  # what both have; a test compares it with the other's, and says what it alone has

TensorRT = Literal["tensorrt", "tensorrt_rtx"]
PRECISIONS = ("fp32", "fp16", "int8")
DRIVER = 13000  # CUDA 13, which drivers have from 580 on
OLDEST = (7, 5)  # compute capability
TURING = "7.5"  # for which TensorRT for RTX has no float32 linear layers, and no INT8
FORMAT = "1"  # of our plans: another one where they are built otherwise
OPTIMAL = 8  # the batch for which TensorRT chooses kernels
logger = logging.getLogger("bentoml.convserve")
building = threading.RLock()  # of one plan at a time, whose messages the journal has


class Plan(NamedTuple):
    """What is run, and the layers it has, as TensorRT for RTX tells them (see engines/inspector.py)."""

    data: bytes
    layers: str


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


def prepare(
    runtime: TensorRT, onnx: Path, sha256: str, precision: str, max_batch: int, capabilities: Sequence[str]
) -> Plan:
    """Build a plan, and keep it where the engine finds it on a machine whose GPU is one of these."""
    if capabilities and runtime == "tensorrt":
        raise EngineError("tensorrt builds for the GPU of the machine that it runs on: tensorrt_rtx builds for others")
    try:
        targets = capabilities or [hardware(runtime)]
    except EngineError as error:
        if runtime == "tensorrt":
            raise
        raise EngineError(f"{error}; for other machines' GPUs: --capability") from error
    keys = [key_of(runtime, sha256, precision, max_batch, target) for target in targets]
    built = build(runtime, onnx, max_batch, capabilities)
    path, *others = map(cache.path_of, keys)
    cache.keep(path, built.data, others)
    return built


def key_of(runtime: TensorRT, sha256: str, precision: str, max_batch: int, hardware: str) -> tuple[str, ...]:
    """What a plan in the cache is of; EngineError if the library is not installed, or has no such precision."""
    if precision not in PRECISIONS:
        raise EngineError(f"{runtime} has no precision {precision!r}; it has {', '.join(PRECISIONS)}")
    return sha256, runtime, library(runtime).__version__, FORMAT, hardware, precision, f"batch 1 to {max_batch}"


def build(runtime: TensorRT, onnx: Path, max_batch: int, capabilities: Sequence[str] = ()) -> Plan:
    """The plan of a graph, for batches of 1 to `max_batch`.

    It is for this machine's GPU; TensorRT for RTX builds for the compute capabilities that are named, such as "8.9".
    EngineError if the graph cannot be built.
    """
    if not TYPE_CHECKING:
        trt = library(runtime)
    with building:
        told = journal(runtime)
        told.clear()
        builder = trt.Builder(told.listener)
        network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        parser = trt.OnnxParser(network, told.listener)
        if not parser.parse_from_file(str(onnx)):
            problems = "; ".join(parser.get_error(index).desc() for index in range(parser.num_errors))
            raise EngineError(f"{runtime} cannot read {onnx}: {problems}")
        config = builder.create_builder_config()
        config.clear_flag(trt.BuilderFlag.TF32)  # on unless told: fp32 is fp32
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # for the inspector
        pixels = network.get_input(0)
        profile = builder.create_optimization_profile()
        batches = (1, min(OPTIMAL, max_batch), max_batch)
        profile.set_shape(pixels.name, *(trt.Dims((batch, *pixels.shape[1:])) for batch in batches))
        config.add_optimization_profile(profile)
        if runtime == "tensorrt_rtx":
            for_capabilities(config, capabilities)
            data: trt.IHostMemory | None = builder.build_serialized_network(network, config)
        else:
            data = with_timings(builder, network, config)
        if data is None:
            raise EngineError(f"{runtime} cannot build {onnx}: {told.reason}")
        return Plan(content(data), told.layers)


def content(memory: trt.IHostMemory) -> bytes:
    """A copy of the library's memory."""
    return bytes(memory)  # type: ignore[call-overload, no-any-return]  # a buffer, which its types do not say


def for_capabilities(config: trt.IBuilderConfig, capabilities: Sequence[str]) -> None:
    """Have TensorRT for RTX build for these, or for this machine's; EngineError if one is not known."""
    if not TYPE_CHECKING:
        trt = library("tensorrt_rtx")
    known = capabilities_of(trt)
    if unknown := [capability for capability in capabilities if capability not in known]:
        raise EngineError(f"tensorrt_rtx has no compute capability {unknown[0]}; it has {', '.join(known)}")
    wanted = [known[capability] for capability in capabilities] or [trt.ComputeCapability.CURRENT]
    config.num_compute_capabilities = len(wanted)
    for index, capability in enumerate(wanted):
        config.set_compute_capability(capability, index)
    config.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)  # else it might allocate while a CUDA graph is recorded


def capabilities_of(trt: ModuleType) -> dict[str, trt.ComputeCapability]:
    """Those that TensorRT for RTX knows, such as "8.9"."""
    members = trt.ComputeCapability.__members__.items()
    return {f"{name[2:-1]}.{name[-1]}": member for name, member in members if name.startswith("SM")}


def with_timings(
    builder: trt.Builder, network: trt.INetworkDefinition, config: trt.IBuilderConfig
) -> trt.IHostMemory | None:
    """Have TensorRT build with what it timed for other plans on this GPU, and keep what it times now."""
    path = cache.path_of(("timings", library("tensorrt").__version__, hardware("tensorrt")))
    timings = config.create_timing_cache(cache.read(path, bytes) or b"")
    if not config.set_timing_cache(timings, ignore_mismatch=False):  # another driver's, say
        timings = config.create_timing_cache(b"")
        config.set_timing_cache(timings, ignore_mismatch=False)
    data = builder.build_serialized_network(network, config)
    if data is not None:
        cache.keep(path, content(timings.serialize()))
    return data


def hardware(runtime: TensorRT) -> str:
    """What this machine's plans are for."""
    return gpu.capability() if runtime == "tensorrt_rtx" else f"{gpu.device().name}, {gpu.capability()}"
