"""PyTorch on a GPU: lanes, each with a stream, buffers, and recorded CUDA graphs of a few batch sizes."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import cache, partial
from operator import methodcaller
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engines.runtimes.engine import Fill
from engines.runtimes.lanes import Lanes, recording
from engines.runtimes.tensorrt.gpu import checked
from engines.runtimes.torch import FromPixels, TorchEngine

if TYPE_CHECKING:
    from torch.cuda import _POOL_HANDLE

BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256)  # batch sizes for which a CUDA graph is recorded


class TorchGpuEngine(TorchEngine):
    """Engine of a module on a GPU, in lanes. Batches beyond the largest bucket run without a recorded graph."""

    def __init__(self, module: FromPixels, precision: str = "fp32", *, compiled: bool = False) -> None:
        super().__init__(module, precision, compiled=compiled)
        self._shape: tuple[int, ...] | None = None  # of an image; the first batch decides
        self._lanes: Lanes[TorchLane] = Lanes(partial(TorchLane, self.module, self.device))

    @property
    def lanes(self) -> int:
        """Number of threads that may call `infer` at once: 2, or 1 where memory is too small for another batch."""
        return self._lanes.count

    def prepare(self, shape: tuple[int, ...]) -> None:
        """Make every lane ready for pixels of `shape`, (N, height, width, channels)."""
        self._lanes.prepare(methodcaller("prepare", self._checked(shape)))

    def infer(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return logits, (N, classes), for pixels, (N, height, width, channels)."""
        with self._lanes.taken(methodcaller("prepare", self._checked(pixels.shape))) as lane:
            return lane.run(pixels.shape, partial(lane.copy_in, torch.from_numpy(pixels)))

    def infer_filled(self, count: int, fill: Fill) -> NDArray[np.float32]:
        """Return logits, (count, classes), for the pixels that `fill` writes; `prepare` or `infer` must run before."""
        if not self._shape:
            raise RuntimeError(f"{self.runtime} knows the shape of an image only after `prepare` or `infer`")
        shape = (count, *self._shape)
        with self._lanes.taken(methodcaller("prepare", shape)) as lane:
            return lane.run(shape, lambda pixels: fill(pixels.data_ptr(), lane.stream.cuda_stream))

    def _checked(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return `shape`. Raises RuntimeError if the images of the first batch had another one."""
        self._shape = self._shape or shape[1:]
        if shape[1:] != self._shape:
            raise RuntimeError(f"pixels are {shape[1:]}, but must be {self._shape}")
        return shape


class TorchLane:
    """Lane of a module: a stream, and by batch size buffers and a recorded inference."""

    def __init__(self, module: FromPixels, device: torch.device) -> None:
        self.stream = torch.cuda.Stream(device)
        self.stream.wait_stream(torch.cuda.current_stream(device))  # on which the weights were written
        self._module, self._device = module, device
        self._pool = torch.cuda.graph_pool_handle()  # memory that the recorded inferences share: one runs at a time
        self._recorded: dict[int, RecordedModule] = {}

    @torch.inference_mode()
    def prepare(self, shape: tuple[int, ...]) -> None:
        """Record an inference for pixels of `shape`, unless there is one, or the batch is too large for one."""
        bucket = bucket_of(shape[0])
        if bucket and bucket not in self._recorded:
            with recording:
                self._recorded[bucket] = self._record((bucket, *shape[1:]))

    def _record(self, shape: tuple[int, ...]) -> RecordedModule:
        """Record an inference; once more if that fails, since a destructor in another thread may end a recording."""
        try:
            return RecordedModule(self._module, shape, self._device, self._pool)
        except torch.cuda.OutOfMemoryError:
            raise
        except RuntimeError:
            self._pool = torch.cuda.graph_pool_handle()  # the failed recording may be left in the old pool
            return RecordedModule(self._module, shape, self._device, self._pool)

    def copy_in(self, images: Tensor, target: Tensor) -> None:
        """Enqueue the copy of images to the GPU, by way of pinned memory if their inference is recorded."""
        if bucket := bucket_of(len(images)):
            images = self._recorded[bucket].staged[: len(images)].copy_(images)
        target.copy_(images, non_blocking=True)

    @torch.inference_mode()
    def run(self, shape: tuple[int, ...], write: Callable[[Tensor], None]) -> NDArray[np.float32]:
        """Return the logits of pixels of `shape`, which `write` enqueues to be written to the tensor that it gets.

        Rows of a recorded inference beyond the number of images hold stale pixels, and are dropped.
        """
        count = shape[0]
        with torch.cuda.stream(self.stream):
            try:
                if bucket := bucket_of(count):
                    recorded = self._recorded[bucket]
                    write(recorded.pixels[:count])
                    logits = recorded.replay()
                else:
                    pixels = torch.empty(shape, dtype=torch.uint8, device=self._device)
                    write(pixels)
                    with recording:  # which frees the workspaces of cuBLAS, and this run may use one
                        logits = self._module(pixels).cpu()
                self.stream.synchronize()
            except BaseException:
                with suppress(RuntimeError):
                    self.stream.synchronize()  # nothing of a failed inference may still run when the lane is used again
                raise
        return np.array(logits[:count].numpy())


class RecordedModule:
    """CUDA graph of a module for one shape of pixels, with pinned memory for pixels and logits."""

    def __init__(self, module: FromPixels, shape: tuple[int, ...], device: torch.device, pool: _POOL_HANDLE) -> None:
        """Run the module three times and record the fourth run, whose memory comes from `pool`."""
        self.staged = pinned(shape, torch.uint8)
        stream = capture_stream(device)
        stream.wait_stream(torch.cuda.current_stream(device))  # on which the weights were written
        with torch.cuda.stream(stream):
            self.pixels = torch.zeros(shape, dtype=torch.uint8, device=device)
            for _ in range(3):  # libraries must choose their kernels before the recording
                module(self.pixels)
            self._graph = torch.cuda.CUDAGraph()
            # The workspace of cuBLAS would be one for all graphs that a thread records, and lanes run at once: without
            # one, a recording takes its own from `pool`.
            torch._C._cuda_clearCublasWorkspaces()
            # Within `stream` already, since a recording that fails leaves its stream the thread's current one.
            with torch.cuda.graph(self._graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
                self._logits: Tensor = module(self.pixels)
            torch._C._cuda_clearCublasWorkspaces()
        self._answers = pinned(tuple(self._logits.shape), torch.float32)

    def replay(self) -> Tensor:
        """Enqueue an inference of `pixels`, and return its logits, valid once the stream is synchronised."""
        self._graph.replay()
        return self._answers.copy_(self._logits, non_blocking=True)


def bucket_of(count: int) -> int | None:
    """Return the batch size at which `count` images run, or None for more than any recorded inference runs."""
    return next((size for size in BUCKETS if size >= count), None)


def pinned(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Return host memory that the GPU reads and writes by itself."""
    return torch.empty(shape, dtype=dtype, pin_memory=True)


@cache
def capture_stream(device: torch.device) -> torch.cuda.Stream:
    """Return the stream on which inferences are recorded, and nothing else runs.

    Torch has 32 streams, given out in turn: another lane might run on the same one, and its work would be recorded.
    """
    from cuda.bindings import runtime

    (handle,) = checked(runtime.cudaStreamCreateWithFlags(runtime.cudaStreamNonBlocking))
    return torch.cuda.ExternalStream(int(handle), device)
