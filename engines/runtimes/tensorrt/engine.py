"""TensorRT, or TensorRT for RTX, on an NVIDIA GPU."""

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
    """A plan, and a recorded CUDA graph for each power of two up to its largest batch.

    All of them run on one stream, with their activations in the same memory. Larger batches are divided.
    """

    def __init__(self, onnx: Path, precision: str, *, runtime: TensorRT, sha256: str, max_batch: int) -> None:
        """Build a plan of `onnx`, whose checksum is `sha256`, or take what was built of it before.

        Where the GPU's memory does not do for batches of `max_batch`, the largest is half of that, and so on.
        EngineError if it does not do for one image, there is no GPU, or TensorRT lacks the precision or refuses the
        graph.
        """
        self.runtime: str = runtime
        self.precision = precision
        with building:  # of which one is made a process
            self._journal = journal(runtime)
        try:
            self._open(runtime, onnx, sha256, max_batch)
        except EngineError:
            raise
        except Exception as error:  # CUDA's have no public class
            raise EngineError(self._told(error)) from error

    def _open(self, runtime: TensorRT, onnx: Path, sha256: str, max_batch: int) -> None:
        """The plan, and what all batch sizes share."""
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
        """Logits, (N, classes), of pixels, (N, height, width, channels)."""
        if pixels.shape[1:] != self._shape:
            raise RuntimeError(f"pixels are {pixels.shape[1:]}, and have to be {self._shape}")
        try:
            self._device.set_current()  # of this thread
            starts = range(0, len(pixels), self._largest)
            return np.concatenate([self._run(pixels[start : start + self._largest]) for start in starts])
        except Exception as error:  # CUDA's have no public class
            raise RuntimeError(self._told(error)) from error

    def _told(self, error: Exception) -> str:
        """What went wrong, and what the library said of it."""
        said = "; ".join([str(error), *self._journal.errors])
        self._journal.clear()
        return f"{self.runtime}: {said}"

    def _run(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Of no more than the largest batch; what the bucket holds above their number is of pixels before."""
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
    """One batch size: an execution context, memory on both sides of the bus, and the recorded graph of an inference."""

    def __init__(
        self, context: trt.IExecutionContext, device: Device, stream: Stream, shape: tuple[int, ...], classes: int
    ) -> None:
        """For pixels of `shape`, (batch, height, width, channels)."""
        from cuda.core import LegacyPinnedMemoryResource

        sizes = prod(shape), shape[0] * classes * np.dtype(np.float32).itemsize
        pinned = LegacyPinnedMemoryResource()
        self._context, self._stream = context, stream
        self._pixels_here, self._logits_here = (pinned.allocate(size) for size in sizes)
        self._pixels_there, self._logits_there = (device.allocate(size, stream=stream) for size in sizes)
        self.pixels = view(self._pixels_here).reshape(shape)
        self.logits = view(self._logits_here).view(np.float32).reshape(shape[0], classes)
        if not (
            context.set_input_shape("pixels", shape)
            and context.set_tensor_address("pixels", int(self._pixels_there.handle))
            and context.set_tensor_address("logits", int(self._logits_there.handle))
        ):
            raise RuntimeError(f"no inference of {shape} can be prepared")
        self._enqueue()  # makes and loads kernels, which a graph cannot
        stream.sync()
        self._graph = gpu.record(stream, self._enqueue)  # without one it runs all the same, more slowly

    def _enqueue(self) -> None:
        """What one inference is."""
        self._pixels_there.copy_from(self._pixels_here, stream=self._stream)
        if not self._context.execute_async_v3(int(self._stream.handle)):
            raise RuntimeError("the inference cannot be enqueued")
        self._logits_there.copy_to(self._logits_here, stream=self._stream)

    def launch(self) -> None:
        """Enqueue an inference of `pixels`, whose `logits` are there once the stream is synchronised."""
        if self._graph:
            self._graph.launch(self._stream)
        else:
            self._enqueue()


class Kernels:
    """What TensorRT for RTX compiled for this GPU, kept for the next time."""

    def __init__(self, config: trt.IRuntimeConfig, key: tuple[str, ...]) -> None:
        if not TYPE_CHECKING:
            trt = library("tensorrt_rtx")
        # what a shape takes is made before it first runs, not meanwhile: a graph would record what is slower
        config.dynamic_shapes_kernel_specialization_strategy = trt.DynamicShapesKernelSpecializationStrategy.EAGER
        self._path = cache.path_of(("kernels", *key))
        self._cache: trt.IRuntimeCache = config.create_runtime_cache()
        self._kept = cache.read(self._path, bytes) or b""
        if self._kept and not self._cache.deserialize(self._kept):
            logger.info("kernels that were compiled with another driver or library are compiled again")
        config.set_runtime_cache(self._cache)

    def keep(self) -> None:
        """Write what was compiled since."""
        data = content(self._cache.serialize())
        if data != self._kept:
            cache.keep(self._path, data)
            self._kept = data


def view(buffer: Buffer) -> NDArray[np.uint8]:
    """The bytes of memory on this side of the bus, for as long as the buffer is there."""
    return np.ctypeslib.as_array((ctypes.c_uint8 * buffer.size).from_address(int(buffer.handle)))


def fitting(runtime: TensorRT, onnx: Path, sha256: str, precision: str, max_batch: int) -> tuple[trt.ICudaEngine, int]:
    """The engine for batches of `max_batch`, or of half as many and so on, that this GPU's memory does for."""
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
    """The plan that the cache has for `key`, or one that is built now, on the GPU; RuntimeError if it is refused."""

    def loaded(data: bytes) -> tuple[trt.ICudaEngine, bytes]:
        return load(runtime, data), data

    engine, _ = cache.cached(key, lambda: loaded(build(runtime, onnx, max_batch).data), lambda made: made[1], loaded)
    return engine


def load(runtime: TensorRT, data: bytes) -> trt.ICudaEngine:
    """A plan on the GPU; RuntimeError says why it is refused, EngineError that there is too little memory for it."""
    with building:
        told = journal(runtime)
        told.clear()
        opener: trt.Runtime = library(runtime).Runtime(told.listener)
        engine: trt.ICudaEngine | None = opener.deserialize_cuda_engine(data)
        if engine is None:
            free = gpu.free_bytes()
            sizes = f"{len(data) / 1e6:,.0f} MB, where {free / 1e6:,.0f} MB are free"
            refusal = f"{runtime} refuses a plan of {sizes}: {told.reason}"
            short = len(data) > free or "memory" in told.reason.lower()
            raise EngineError(refusal) if short else RuntimeError(refusal)
        return engine


def layers_of(runtime: TensorRT, built: Plan) -> str:
    """What the builder told of a plan's layers; if that is nothing, what the inspector tells, which needs the GPU."""
    if built.layers:
        return built.layers
    inspector = load(runtime, built.data).create_engine_inspector()
    return inspector.get_engine_information(library(runtime).LayerInformationFormat.ONELINE)
