"""Engine that runs a plan of TensorRT, or of TensorRT for RTX, on an NVIDIA GPU."""

from __future__ import annotations

import ctypes
import logging
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from engines.runtimes import cache
from engines.runtimes.engine import EngineError
from engines.runtimes.tensorrt import gpu
from engines.runtimes.tensorrt.library import TensorRT, building, content, hardware, journal, library
from engines.runtimes.tensorrt.plan import Plan, build, key_of

if TYPE_CHECKING:
    import tensorrt_rtx as trt
    from cuda.core import Buffer, Device, Stream

logger = logging.getLogger("bentoml.convserve")


class TensorRTEngine:
    """Engine of a plan, with a recorded CUDA graph for each power of two up to the largest batch.

    All graphs run on one stream and share the memory of their activations. Larger batches are divided.
    """

    def __init__(self, onnx: Path, precision: str, *, runtime: TensorRT, sha256: str, max_batch: int) -> None:
        """Open the plan of `onnx`, whose checksum is `sha256`, from the cache, or build it.

        Where GPU memory is too small for batches of `max_batch`, the largest batch is halved until it fits. Raises
        EngineError if memory is too small for one image, if there is no GPU, or if TensorRT lacks the precision or
        refuses the graph.
        """
        self.runtime: str = runtime
        self.precision = precision
        with building:  # a library accepts one listener per process
            self._journal = journal(runtime)
        try:
            self._open(runtime, onnx, sha256, max_batch)
        except EngineError:
            raise
        except Exception as error:  # cuda.core's errors have no public class
            raise EngineError(self._failure(error)) from error

    def _open(self, runtime: TensorRT, onnx: Path, sha256: str, max_batch: int) -> None:
        """Open the plan, and create the stream, memory and configuration that all batch sizes share."""
        self._device = gpu.device()
        self._device.set_current()
        self._engine, self._largest = fitting(runtime, onnx, sha256, self.precision, max_batch)
        self._stream = self._device.create_stream()
        self._memory = self._device.allocate(max(self._engine.device_memory_size_v2, 1), stream=self._stream)
        self._config = self._engine.create_runtime_config()
        self._config.set_execution_context_allocation_strategy(
            library(runtime).ExecutionContextAllocationStrategy.USER_MANAGED
        )
        key = (runtime, sha256, self.precision, self._device.name)
        self._kernels = Kernels(self._config, key) if runtime == "tensorrt_rtx" else None
        self._shape: tuple[int, ...] = self._engine.get_tensor_shape("pixels")[1:]
        self._classes = self._engine.get_tensor_shape("logits")[1]
        self._buckets: dict[int, Bucket] = {}

    def infer(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return logits, (N, classes), for pixels, (N, height, width, channels)."""
        if pixels.shape[1:] != self._shape:
            raise RuntimeError(f"pixels are {pixels.shape[1:]}, but must be {self._shape}")
        try:
            self._device.set_current()  # the current device is a property of the thread
            starts = range(0, len(pixels), self._largest)
            return np.concatenate([self._run(pixels[start : start + self._largest]) for start in starts])
        except Exception as error:  # cuda.core's errors have no public class
            raise RuntimeError(self._failure(error)) from error

    def _failure(self, error: Exception) -> str:
        """Return a message with the error and the errors that the library logged, and clear the log."""
        reasons = "; ".join([str(error), *self._journal.errors])
        self._journal.clear()
        return f"{self.runtime}: {reasons}"

    def _run(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Run at most `_largest` images; the bucket's rows beyond their number hold stale pixels and are dropped."""
        count = len(pixels)
        size = 1 << (count - 1).bit_length()
        if size not in self._buckets:
            context = self._engine.create_execution_context(self._config)
            context.set_device_memory(int(self._memory.handle), self._memory.size)
            self._buckets[size] = Bucket(context, self._device, self._stream, (size, *self._shape), self._classes)
            if self._kernels:
                self._kernels.keep()
        bucket = self._buckets[size]
        bucket.pixels[:count] = pixels
        bucket.launch()
        self._stream.sync()
        return bucket.logits[:count].copy()


class Bucket:
    """Execution context, host and device memory, and recorded inference of one batch size."""

    def __init__(
        self, context: trt.IExecutionContext, device: Device, stream: Stream, shape: tuple[int, ...], classes: int
    ) -> None:
        """Allocate memory for pixels of `shape`, (batch, height, width, channels), and record one inference.

        Raises RuntimeError if the context refuses the shape or cannot run.
        """
        from cuda.core import LegacyPinnedMemoryResource

        sizes = prod(shape), shape[0] * classes * np.dtype(np.float32).itemsize
        pinned = LegacyPinnedMemoryResource()
        self._context, self._stream = context, stream
        self._pixels_host, self._logits_host = (pinned.allocate(size) for size in sizes)
        self._pixels_device, self._logits_device = (device.allocate(size, stream=stream) for size in sizes)
        self.pixels = view(self._pixels_host).reshape(shape)
        self.logits = view(self._logits_host).view(np.float32).reshape(shape[0], classes)
        if not (
            context.set_input_shape("pixels", shape)
            and context.set_tensor_address("pixels", int(self._pixels_device.handle))
            and context.set_tensor_address("logits", int(self._logits_device.handle))
        ):
            raise RuntimeError(f"the plan does not accept pixels of {shape}")
        self._enqueue()  # compiles and loads kernels, which cannot happen while a graph is recorded
        stream.sync()
        # None where recording fails: launch() then enqueues each step, which is slower.
        self._graph = gpu.record(stream, self._enqueue)

    def _enqueue(self) -> None:
        """Enqueue one inference: copy pixels to the GPU, run the plan, copy logits back."""
        self._pixels_device.copy_from(self._pixels_host, stream=self._stream)
        if not self._context.execute_async_v3(int(self._stream.handle)):
            raise RuntimeError("the inference cannot be enqueued")
        self._logits_device.copy_to(self._logits_host, stream=self._stream)

    def launch(self) -> None:
        """Enqueue an inference of `pixels`; `logits` are valid once the stream is synchronised."""
        if self._graph:
            self._graph.launch(self._stream)
        else:
            self._enqueue()


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


def view(buffer: Buffer) -> NDArray[np.uint8]:
    """Return host memory as an array of bytes, valid for as long as the buffer exists."""
    return np.ctypeslib.as_array((ctypes.c_uint8 * buffer.size).from_address(int(buffer.handle)))


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
