"""Execution of a plan: lanes, each with a stream, memory and recorded CUDA graphs."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from math import prod
from operator import methodcaller
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from engines.runtimes.engine import Fill
from engines.runtimes.lanes import Lanes, recording
from engines.runtimes.tensorrt import gpu

if TYPE_CHECKING:
    import tensorrt_rtx as trt
    from cuda.core import Buffer, Device, Stream


class KernelStore(Protocol):
    """Store of the kernels that are compiled when a batch size first runs."""

    def keep(self) -> None:
        """Write the kernels to disk."""


@dataclass(frozen=True)
class LoadedPlan:
    """Plan on a GPU, with the settings of its contexts, and the largest batch that it accepts."""

    device: Device
    engine: trt.ICudaEngine
    config: trt.IRuntimeConfig
    largest: int
    kernels: KernelStore | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of an image: height, width, channels."""
        return self.engine.get_tensor_shape("pixels")[1:]

    @property
    def classes(self) -> int:
        """Length of an image's logits."""
        return int(self.engine.get_tensor_shape("logits")[1])


class Executor:
    """Executor of a plan in lanes, with a recorded CUDA graph for each power of two up to the largest batch.

    All graphs of a lane share its stream and memory. Larger batches are divided.
    """

    def __init__(self, plan: LoadedPlan) -> None:
        """Create the first lane. The device must be the thread's current one."""
        self._plan, self._shape = plan, plan.shape
        self._lanes: Lanes[PlanLane] = Lanes(partial(PlanLane, plan))

    @property
    def lanes(self) -> int:
        """Number of threads that may call at once."""
        return self._lanes.count

    def prepare(self, shape: tuple[int, ...]) -> None:
        """Make every lane ready for pixels of `shape`."""
        self._check(shape)
        self._lanes.prepare(methodcaller("prepare", shape[0]))

    def infer(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return logits, (N, classes), for pixels, (N, height, width, channels)."""
        self._check(pixels.shape)
        logits = []
        for start in range(0, len(pixels), self._plan.largest):
            part = pixels[start : start + self._plan.largest]
            with self._lanes.taken(methodcaller("prepare", len(part))) as lane:
                logits.append(lane.infer(len(part), partial(lane.copy_in, part)))
        return np.concatenate(logits)

    def infer_filled(self, count: int, fill: Fill) -> NDArray[np.float32]:
        """Return logits, (count, classes), for the pixels that `fill` writes."""
        self._check((count, *self._shape))
        with self._lanes.taken(methodcaller("prepare", count)) as lane:
            return lane.infer(count, fill)

    def _check(self, shape: tuple[int, ...]) -> None:
        """Make the device the thread's current one. Raises RuntimeError if `shape` does not fit the plan."""
        if shape[1:] != self._shape:
            raise RuntimeError(f"pixels are {shape[1:]}, but must be {self._shape}")
        self._plan.device.set_current()


class PlanLane:
    """Lane of a plan: a stream, memory for pixels, logits and activations, and recorded inferences by batch size."""

    def __init__(self, plan: LoadedPlan) -> None:
        from cuda.core import LegacyPinnedMemoryResource

        self._plan = plan
        self._stream = plan.device.create_stream()
        self._image_bytes = prod(plan.shape)
        row_bytes = plan.classes * np.dtype(np.float32).itemsize
        self._activations = self._allocate(max(plan.engine.device_memory_size_v2, 1))
        self._pixels, self._logits = (self._allocate(plan.largest * size) for size in (self._image_bytes, row_bytes))
        pinned = LegacyPinnedMemoryResource()
        self._pixels_host, self._logits_host = (pinned.allocate(each.size) for each in (self._pixels, self._logits))
        self._staged = view(self._pixels_host).reshape(plan.largest, *plan.shape)
        self._answers = view(self._logits_host).view(np.float32).reshape(plan.largest, plan.classes)
        self._buckets: dict[int, Bucket] = {}

    def _allocate(self, size: int) -> Buffer:
        """Allocate memory of the GPU for the work of this stream."""
        return self._plan.device.allocate(size, stream=self._stream)

    def prepare(self, count: int) -> None:
        """Record what `count` images run, where no earlier call has recorded it."""
        for size in {bucket_of(part) for part in self._parts(count)} - self._buckets.keys():
            with recording:
                self._buckets[size] = self._bucket(size)
                if self._plan.kernels:
                    self._plan.kernels.keep()

    def _parts(self, count: int) -> list[int]:
        """Return the numbers of images that an inference of `count` images runs in turn."""
        largest = self._plan.largest
        return [min(largest, count - start) for start in range(0, count, largest)]

    def _bucket(self, size: int) -> Bucket:
        """Record an inference of `size` images. Raises RuntimeError if the plan refuses the size or cannot run."""
        context = self._plan.engine.create_execution_context(self._plan.config)
        context.set_device_memory(int(self._activations.handle), self._activations.size)
        shape = (size, *self._plan.shape)
        if not (
            context.set_input_shape("pixels", shape)
            and context.set_tensor_address("pixels", int(self._pixels.handle))
            and context.set_tensor_address("logits", int(self._logits.handle))
        ):
            raise RuntimeError(f"the plan does not accept pixels of {shape}")
        stream = int(self._stream.handle)
        nbytes = self._answers[:size].nbytes
        copy_out = partial(gpu.copy, int(self._logits_host.handle), int(self._logits.handle), nbytes, stream)

        def enqueue() -> None:
            if not context.execute_async_v3(stream):
                raise RuntimeError("the inference cannot be enqueued")
            copy_out()

        return Bucket(self._stream, enqueue)

    def copy_in(self, images: NDArray[np.uint8], target: int, stream: int) -> None:
        """Enqueue the copy of images, at most the largest batch, to an address on the GPU, by way of pinned memory."""
        self._staged[: len(images)] = images
        gpu.copy(target, int(self._pixels_host.handle), len(images) * self._image_bytes, stream)

    def infer(self, count: int, fill: Fill) -> NDArray[np.float32]:
        """Return the logits of the pixels that `fill` writes; the lane must be ready for `count` images.

        The rows of a recorded inference beyond `count` hold stale pixels, and are dropped.
        """
        try:
            if count <= self._plan.largest:
                fill(int(self._pixels.handle), int(self._stream.handle))
                return self._run(count)
            return self._run_in_parts(count, fill)
        except BaseException:
            with suppress(Exception):
                self._stream.sync()  # nothing of a failed inference may still run when the lane is used again
            raise

    def _run(self, count: int) -> NDArray[np.float32]:
        """Run at most the largest batch of images, which are enqueued to be in the lane's memory."""
        self._buckets[bucket_of(count)].launch()
        self._stream.sync()
        return self._answers[:count].copy()

    def _run_in_parts(self, count: int, fill: Fill) -> NDArray[np.float32]:
        """Run more images than the largest batch, written to memory of their own."""
        whole = self._allocate(count * self._image_bytes)
        fill(int(whole.handle), int(self._stream.handle))
        logits, source = [], int(whole.handle)
        for part in self._parts(count):
            gpu.copy(int(self._pixels.handle), source, part * self._image_bytes, int(self._stream.handle))
            logits.append(self._run(part))
            source += part * self._image_bytes
        return np.concatenate(logits)


class Bucket:
    """Recorded inference of one batch size."""

    def __init__(self, stream: Stream, enqueue: Callable[[], None]) -> None:
        """Run once and record the work that `enqueue` enqueues on the stream."""
        enqueue()  # compiles and loads kernels, which cannot happen while a graph is recorded
        stream.sync()
        self._stream, self._enqueue = stream, enqueue
        # None where recording fails: launch() then enqueues each step, which is slower.
        self._graph = gpu.record(stream, enqueue)

    def launch(self) -> None:
        """Enqueue the recorded inference."""
        if self._graph:
            self._graph.launch(self._stream)
        else:
            self._enqueue()


def bucket_of(count: int) -> int:
    """Return the batch size at which `count` images run: the next power of two."""
    return 1 << (count - 1).bit_length()


def view(buffer: Buffer) -> NDArray[np.uint8]:
    """Return host memory as an array of bytes, valid for as long as the buffer exists."""
    return np.ctypeslib.as_array((ctypes.c_uint8 * buffer.size).from_address(int(buffer.handle)))
