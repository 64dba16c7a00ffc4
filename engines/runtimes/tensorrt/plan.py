"""From ONNX to a plan, which TensorRT runs: by TensorRT, or by TensorRT for RTX.

TensorRT tries kernels on a GPU, and its plans are for that kind of GPU. TensorRT for RTX builds on any machine for the
compute capabilities that are named, and makes the kernels where the plan is run.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from engines.runtimes import cache
from engines.runtimes.engine import EngineError
from engines.runtimes.tensorrt.library import (
    PRECISIONS,
    TensorRT,
    building,
    capabilities_of,
    content,
    hardware,
    journal,
    library,
)

if TYPE_CHECKING:
    import tensorrt_rtx as trt

FORMAT = "1"  # of our plans: another one where they are built otherwise
OPTIMAL = 8  # the batch for which TensorRT chooses kernels


class Plan(NamedTuple):
    """What is run, and the layers it has, as TensorRT for RTX tells them (see engines/inspector.py)."""

    data: bytes
    layers: str


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
