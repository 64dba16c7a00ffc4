"""Engine that runs a plan of TensorRT, or of TensorRT for RTX, on an NVIDIA GPU."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from engines.runtimes import cache
from engines.runtimes.engine import EngineError, Fill
from engines.runtimes.lanes import recording
from engines.runtimes.tensorrt import gpu
from engines.runtimes.tensorrt.executor import Executor, LoadedPlan
from engines.runtimes.tensorrt.library import TensorRT, building, content, hardware, journal, library
from engines.runtimes.tensorrt.plan import Plan, build, key_of

if TYPE_CHECKING:
    import tensorrt_rtx as trt

logger = logging.getLogger("bentoml.convserve")


class TensorRTEngine:
    """Engine of a plan, which an executor runs in lanes."""

    def __init__(self, onnx: Path, precision: str, *, runtime: TensorRT, sha256: str, max_batch: int) -> None:
        """Open the plan of `onnx`, whose checksum is `sha256`, from the cache, or build it.

        Where GPU memory is too small for batches of `max_batch`, the largest batch is halved until it fits. Raises
        EngineError if memory is too small for one image, if there is no GPU, or if TensorRT lacks the precision or
        refuses the graph.
        """
        self.runtime: str = runtime
        self.precision = precision
        gpu.device()  # looked for before the library, as by `library.check`
        with building:  # a library accepts one listener per process
            self._journal = journal(runtime)
        try:
            self._executor = Executor(self._open(runtime, onnx, sha256, max_batch))
        except EngineError:
            raise
        except Exception as error:  # cuda.core's errors have no public class
            raise EngineError(self._failure(error)) from error

    def _open(self, runtime: TensorRT, onnx: Path, sha256: str, max_batch: int) -> LoadedPlan:
        """Load the plan on the GPU, and configure its contexts."""
        device = gpu.device()
        device.set_current()
        engine, largest = fitting(runtime, onnx, sha256, self.precision, max_batch)
        config = engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(
            library(runtime).ExecutionContextAllocationStrategy.USER_MANAGED
        )
        key = (runtime, sha256, self.precision, device.name)
        return LoadedPlan(device, engine, config, largest, Kernels(config, key) if runtime == "tensorrt_rtx" else None)

    @property
    def lanes(self) -> int:
        """Number of threads that may call `infer` at once: 2, or 1 where memory is too small for another batch."""
        return self._executor.lanes

    def prepare(self, shape: tuple[int, ...]) -> None:
        """Make every lane ready for pixels of `shape`."""
        with self._reporting():
            self._executor.prepare(shape)

    def infer(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return logits, (N, classes), for pixels, (N, height, width, channels)."""
        with self._reporting():
            return self._executor.infer(pixels)

    def infer_filled(self, count: int, fill: Fill) -> NDArray[np.float32]:
        """Return logits, (count, classes), for the pixels that `fill` writes."""
        with self._reporting():
            return self._executor.infer_filled(count, fill)

    @contextmanager
    def _reporting(self) -> Iterator[None]:
        """Raise RuntimeError with what the library logged, in place of an error of CUDA."""
        try:
            yield
        except Exception as error:  # cuda.core's errors have no public class
            raise RuntimeError(self._failure(error)) from error

    def _failure(self, error: Exception) -> str:
        """Return a message with the error and the errors that the library logged, and clear the log."""
        reasons = "; ".join([str(error), *self._journal.errors])
        self._journal.clear()
        return f"{self.runtime}: {reasons}"


class Kernels:
    """Cache of the kernels that TensorRT for RTX compiled for this GPU."""

    def __init__(self, config: trt.IRuntimeConfig, key: tuple[str, ...]) -> None:
        if not TYPE_CHECKING:
            trt = library("tensorrt_rtx")
        # Compile a shape's kernels before its first run, not in the background: a graph would record slower ones.
        config.dynamic_shapes_kernel_specialization_strategy = trt.DynamicShapesKernelSpecializationStrategy.EAGER
        self._path = cache.path_of(("kernels", *key))
        self._cache: trt.IRuntimeCache = config.create_runtime_cache()
        self._saved = cache.read(self._path, bytes) or b""
        if self._saved and not self._cache.deserialize(self._saved):
            logger.info("kernels that were compiled with another driver or library are compiled again")
        config.set_runtime_cache(self._cache)

    def keep(self) -> None:
        """Write the cache to disk if kernels were compiled since the last time."""
        data = content(self._cache.serialize())
        if data != self._saved:
            cache.keep(self._path, data)
            self._saved = data


def fitting(runtime: TensorRT, onnx: Path, sha256: str, precision: str, max_batch: int) -> tuple[trt.ICudaEngine, int]:
    """Open a plan for batches of `max_batch`, halved until GPU memory suffices; return the plan and its largest batch.

    Raises EngineError if memory is too small for batches of 1.
    """
    largest = 1 << (max_batch - 1).bit_length()
    while True:
        engine = open_plan(runtime, onnx, key_of(runtime, sha256, precision, largest, hardware(runtime)), largest)
        needed, free = engine.device_memory_size_v2, gpu.free_bytes()
        if needed <= free:
            return engine, largest
        shortage = f"{needed / 1e6:,.0f} MB of GPU memory for batches of {largest}; {free / 1e6:,.0f} are free"
        if largest == 1:
            raise EngineError(f"{runtime} needs {shortage}")
        logger.warning("%s in %s would need %s: batches are halved", "/".join(onnx.parts[-3:-1]), precision, shortage)
        del engine
        largest //= 2


def open_plan(runtime: TensorRT, onnx: Path, key: tuple[str, ...], max_batch: int) -> trt.ICudaEngine:
    """Load the cached plan of `key` on the GPU, or build one. Raises RuntimeError if the new plan is refused."""

    def loaded(data: bytes) -> tuple[trt.ICudaEngine, bytes]:
        return load(runtime, data), data

    engine, _ = cache.cached(
        key, lambda: loaded(build(runtime, onnx, max_batch).data), lambda opened: opened[1], loaded
    )
    return engine


def load(runtime: TensorRT, data: bytes) -> trt.ICudaEngine:
    """Load a plan on the GPU. Raises EngineError if memory is too small, else RuntimeError if the plan is refused."""
    with building:
        messages = journal(runtime)
        messages.clear()
        opener: trt.Runtime = library(runtime).Runtime(messages.listener)
        with recording:
            engine: trt.ICudaEngine | None = opener.deserialize_cuda_engine(data)
        if engine is None:
            free = gpu.free_bytes()
            sizes = f"{len(data) / 1e6:,.0f} MB, where {free / 1e6:,.0f} MB are free"
            refusal = f"{runtime} refuses a plan of {sizes}: {messages.reason}"
            short = len(data) > free or "memory" in messages.reason.lower()
            raise EngineError(refusal) if short else RuntimeError(refusal)
        return engine


def layers_of(runtime: TensorRT, built: Plan) -> str:
    """Return the description of a plan's layers: the builder's, or without one the inspector's, which needs the GPU."""
    if built.layers:
        return built.layers
    inspector = load(runtime, built.data).create_engine_inspector()
    return inspector.get_engine_information(library(runtime).LayerInformationFormat.ONELINE)
