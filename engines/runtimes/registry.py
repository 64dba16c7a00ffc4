"""Table of the runtimes; opens the engine of a published model, and selects a runtime for this machine."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import numpy as np

from engines.published.manifest import GRAPHS, ONNX
from engines.published.maps import MAPS, outputs_with_maps
from engines.published.store import PublishedModel
from engines.runtimes.engine import GPU_MAX_BATCH, Engine, EngineError, GpuEngine
from engines.runtimes.machine import accelerator
from engines.runtimes.tensorrt import gpu, library
from engines.runtimes.tensorrt.library import TensorRT

Measured = Literal["openvino", "onnxruntime", "torch", "torch_compile", TensorRT]
Runtime = Literal[Measured, "null", "paced"]
logger = logging.getLogger("bentoml.convserve")


NO_PRECISION = ("none",)  # precisions of a runtime that computes nothing


class RuntimeInfo(NamedTuple):
    """Row of RUNTIMES: facts about a runtime that are known without its library."""

    module: str  # in engines.runtimes; importing the module imports the library (TensorRT's is imported by the engine)
    library: str  # Python package whose version decides how an engine computes
    on_gpu: bool
    precisions: tuple[str, ...]


RUNTIMES: dict[Runtime, RuntimeInfo] = {
    "openvino": RuntimeInfo("openvino", "openvino", on_gpu=False, precisions=("fp32", "bf16", "fp16", "int8")),
    "onnxruntime": RuntimeInfo("onnxruntime", "onnxruntime", on_gpu=False, precisions=("fp32", "int8")),
    "torch": RuntimeInfo("torch", "torch", on_gpu=True, precisions=("fp32", "bf16", "fp16")),
    "torch_compile": RuntimeInfo("torch", "torch", on_gpu=True, precisions=("fp32", "bf16", "fp16")),
    "tensorrt": RuntimeInfo("tensorrt.engine", "tensorrt", on_gpu=True, precisions=library.PRECISIONS),
    "tensorrt_rtx": RuntimeInfo("tensorrt.engine", "tensorrt_rtx", on_gpu=True, precisions=library.PRECISIONS),
    "null": RuntimeInfo("null", "numpy", on_gpu=False, precisions=NO_PRECISION),
    "paced": RuntimeInfo("null", "numpy", on_gpu=False, precisions=NO_PRECISION),
}
PREFERRED: tuple[Measured, ...] = ("tensorrt", "tensorrt_rtx", "torch")  # the order in which `auto` tries a GPU


class EngineSpec(NamedTuple):
    """Choice of one engine of a model. Only OpenVINO uses `streams` and `threads`, and has the precision MAPS."""

    runtime: Runtime
    precision: str
    streams: int = 1
    threads: int | None = None


def gpu_of(runtime: Runtime) -> str | None:
    """Return the name of the GPU that a runtime uses on this machine, or None."""
    if runtime in get_args(TensorRT):
        return gpu.name() or accelerator()
    return accelerator() if RUNTIMES[runtime].on_gpu else None


@cache
def preferred(precision: str) -> Measured:
    """Return the runtime for a model without measured engines: the first that can use the GPU, else OpenVINO.

    Logs the reason for each runtime that is passed over.
    """
    if no_gpu():
        return "openvino"
    for runtime in PREFERRED:
        try:
            if precision not in RUNTIMES[runtime].precisions:
                raise EngineError(f"it does not support {precision}")
            check(runtime)
        except EngineError as error:
            logger.info("not %s: %s", runtime, error)
        else:
            logger.info("%s can run here", runtime)
            return runtime
    return "openvino"


@cache  # one line a process, whatever precisions are asked for
def no_gpu() -> bool:
    """Return True, and log that OpenVINO runs the engines, if there is no GPU that any runtime may use."""
    if gpu_of("tensorrt"):
        return False
    logger.info("no NVIDIA GPU: OpenVINO runs the engines")
    return True


def check(runtime: Runtime) -> None:
    """Raise EngineError, naming the missing part, if a GPU runtime cannot run on this machine.

    The GPU is looked for before the library. CPU runtimes are not checked.
    """
    match runtime:
        case "tensorrt" | "tensorrt_rtx":
            library.check(runtime)
        case "torch" | "torch_compile":
            if not gpu_of(runtime):
                raise EngineError(gpu.NO_GPU)
            if not find_spec("torch"):
                raise EngineError("torch is not installed here: pip install '.[training]'")
            if import_module("engines.runtimes.torch").DEVICE == "cpu":
                raise EngineError("this torch has no CUDA, or the driver is too old for it")


def open_engine(
    model: PublishedModel, spec: EngineSpec, batches: Sequence[int] = (1,), max_batch: int | None = None
) -> Engine:
    """Open an engine and run it once at each size of `batches`, so that no request waits for a compilation.

    TensorRT reserves memory for `max_batch` images, by default as many as a server on a GPU. Raises ManifestError if a
    file is missing or differs from the published one, EngineError if the runtime cannot run the model.
    """
    manifest = model.manifest
    manifest.check_files(model.folder)
    try:
        engine = make_engine(model, spec, max_batch or GPU_MAX_BATCH)
        if isinstance(engine, GpuEngine):
            for batch in sorted(batches, reverse=True):  # the largest first: the others share its memory
                engine.prepare((batch, *manifest.preprocess.shape))
        for batch in batches:
            logits = engine.infer(np.zeros((batch, *manifest.preprocess.shape), np.uint8))
    except ModuleNotFoundError as error:
        raise EngineError(f"{spec.runtime} is not installed here ({error}): pip install '.[training]'") from error
    except RuntimeError as error:
        raise EngineError(f"{spec.runtime} cannot run {manifest.tag}: {error}") from error
    outputs = len(manifest.labels)
    if spec.precision == MAPS:
        outputs = outputs_with_maps(manifest.complexity, outputs)
    if logits.shape != (batch, outputs):
        raise EngineError(f"{manifest.tag} has {len(manifest.labels)} labels, but its graph returns {logits.shape[1:]}")
    return engine


def graph_of(model: PublishedModel, precision: str) -> Path:
    """Return the path of the ONNX file in a precision. Raises EngineError if the model has no such file."""
    manifest = model.manifest
    if precision not in GRAPHS:
        raise EngineError(f"there is no precision {precision!r}; there are {', '.join(GRAPHS)}")
    if precision not in manifest.precisions:
        raise EngineError(
            f"{manifest.tag} has no {precision}: python -m training publish CHECKPOINT --precisions fp32,{precision}"
        )
    return model.folder / GRAPHS[precision]


def make_engine(model: PublishedModel, spec: EngineSpec, max_batch: int = GPU_MAX_BATCH) -> Engine:
    """Create an engine without running it. The runtime's library is imported by this call, not before."""
    runtime, precision, _, _ = spec
    match runtime:
        case "openvino":
            return make_openvino(model, spec)
        case "tensorrt" | "tensorrt_rtx":
            from engines.runtimes.tensorrt.engine import TensorRTEngine

            graph = graph_of(model, precision)
            sha256 = model.manifest.files[graph.name].sha256
            return TensorRTEngine(graph, precision, runtime=runtime, sha256=sha256, max_batch=max_batch)
        case "onnxruntime":
            from engines.runtimes.onnxruntime import ONNXRuntimeEngine

            return ONNXRuntimeEngine(graph_of(model, precision), precision)
        case "torch" | "torch_compile":
            from engines.runtimes.torch import open_torch

            return open_torch(model, precision, compiled=runtime == "torch_compile")
        case "null":
            from engines.runtimes.null import NullEngine

            return NullEngine(len(model.manifest.labels))
        case "paced":
            from engines.runtimes.null import PacedEngine

            return PacedEngine(len(model.manifest.labels))


def make_openvino(model: PublishedModel, spec: EngineSpec) -> Engine:
    """Create an engine of OpenVINO; in the precision MAPS one that returns class activation maps too."""
    from engines.runtimes.maps import MapsEngine
    from engines.runtimes.openvino import OpenVINOEngine

    if spec.precision == MAPS:
        return MapsEngine(model.folder / ONNX, sha256=model.manifest.files[ONNX].sha256)
    graph = graph_of(model, spec.precision)
    sha256 = model.manifest.files[graph.name].sha256
    return OpenVINOEngine(graph, spec.precision, streams=spec.streams, threads=spec.threads, sha256=sha256)
