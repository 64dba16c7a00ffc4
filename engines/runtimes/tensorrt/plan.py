"""Plans: ONNX graphs compiled by TensorRT or TensorRT for RTX.

TensorRT times kernels on the machine's GPU, and its plans run on the same kind of GPU. TensorRT for RTX builds on any
machine for the requested compute capabilities, and compiles the kernels on the machine that runs the plan.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from engines.runtimes import cache
from engines.runtimes.engine import EngineError
from engines.runtimes.tensorrt.fold import fold_batch_norms
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

FORMAT = "1"  # version of build(): increase when plans are built differently, so that cached ones are rebuilt
OPTIMAL = 8  # batch size for which TensorRT chooses kernels


class Plan(NamedTuple):
    """Serialised plan, and the layer descriptions that the builder logged, which inspect.py parses."""

    data: bytes
    layers: str


def prepare(
    runtime: TensorRT, onnx: Path, sha256: str, precision: str, max_batch: int, capabilities: Sequence[str]
) -> Plan:
    """Build a plan and cache it under the key of each compute capability, or of this machine's GPU without any.

    Raises EngineError if the library cannot build for these capabilities, or cannot build the graph.
    """
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
    """Return a plan's cache key. Raises EngineError if the library is not installed or lacks the precision."""
    if precision not in PRECISIONS:
        raise EngineError(f"{runtime} has no precision {precision!r}; it has {', '.join(PRECISIONS)}")
    return sha256, runtime, library(runtime).__version__, FORMAT, hardware, precision, f"batch 1 to {max_batch}"


def build(runtime: TensorRT, onnx: Path, max_batch: int, capabilities: Sequence[str] = ()) -> Plan:
    """Build the plan of a graph for batches of 1 to `max_batch`.

    The plan is for this machine's GPU, or, by TensorRT for RTX, for `capabilities`, such as "8.9". Raises EngineError
    if the library cannot read or build the graph.
    """
    if not TYPE_CHECKING:
        trt = library(runtime)
    with building:
        messages = journal(runtime)
        messages.clear()
        builder = trt.Builder(messages.listener)
        network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        parser = trt.OnnxParser(network, messages.listener)
        if not parser.parse_from_file(str(onnx)):
            problems = "; ".join(parser.get_error(index).desc() for index in range(parser.num_errors))
            raise EngineError(f"{runtime} cannot read {onnx}: {problems}")
        weights = fold_batch_norms(runtime, network)
        config = builder.create_builder_config()
        config.clear_flag(trt.BuilderFlag.TF32)  # on by default, but fp32 means fp32
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # so that the inspector reports every layer
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
        del weights  # which had to exist until now
        if data is None:
            raise EngineError(f"{runtime} cannot build {onnx}: {messages.reason}")
        return Plan(content(data), messages.layers)


def for_capabilities(config: trt.IBuilderConfig, capabilities: Sequence[str]) -> None:
    """Set the compute capabilities that TensorRT for RTX builds for: by default, this machine's.

    Raises EngineError for a capability that the library cannot build for.
    """
    if not TYPE_CHECKING:
        trt = library("tensorrt_rtx")
    known = capabilities_of(trt)
    if unknown := [capability for capability in capabilities if capability not in known]:
        raise EngineError(f"tensorrt_rtx has no compute capability {unknown[0]}; it has {', '.join(known)}")
    targets = [known[capability] for capability in capabilities] or [trt.ComputeCapability.CURRENT]
    config.num_compute_capabilities = len(targets)
    for index, capability in enumerate(targets):
        config.set_compute_capability(capability, index)
    # Otherwise the library may allocate memory while a CUDA graph is recorded.
    config.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)


def with_timings(
    builder: trt.Builder, network: trt.INetworkDefinition, config: trt.IBuilderConfig
) -> trt.IHostMemory | None:
    """Build a plan with the kernel timings of earlier plans on this GPU, and cache the new timings.

    Returns None if TensorRT cannot build the plan.
    """
    path = cache.path_of(("timings", library("tensorrt").__version__, hardware("tensorrt")))
    timings = config.create_timing_cache(cache.read(path, bytes) or b"")
    if not config.set_timing_cache(timings, ignore_mismatch=False):  # refused, for example after a change of driver
        timings = config.create_timing_cache(b"")
        config.set_timing_cache(timings, ignore_mismatch=False)
    data = builder.build_serialized_network(network, config)
    if data is not None:
        cache.keep(path, content(timings.serialize()))
    return data
