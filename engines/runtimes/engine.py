"""Protocol that the engines of every runtime implement."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

# Function that enqueues the writing of pixels: their address on the GPU, and the handle of the CUDA stream.
Fill = Callable[[int, int], None]


class EngineError(Exception):
    """Raised when an engine cannot be opened on this machine; the message says what to do about it."""


class Engine(Protocol):
    """Model that is ready to run."""

    @property
    def runtime(self) -> str:
        """Name of the runtime, such as "openvino"."""

    @property
    def precision(self) -> str:
        """Precision of the arithmetic, such as "fp32"."""

    @property
    def lanes(self) -> int:
        """Number of threads that may call `infer` at once; 1 on a CPU, and where a GPU has no memory for more."""

    def infer(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return logits, (N, classes), for pixels, (N, height, width, channels).

        Raises RuntimeError if the inference fails.
        """


@runtime_checkable
class GpuEngine(Engine, Protocol):
    """Engine on a GPU, whose pixels may also be written on the GPU. More calls than lanes wait for each other."""

    def infer_filled(self, count: int, fill: Fill) -> NDArray[np.float32]:
        """Return logits, (count, classes), for the pixels that `fill` writes.

        `fill` enqueues on the stream whatever writes uint8 pixels, (count, height, width, channels), at the address.
        Its host memory must last until this call returns. Raises RuntimeError if the inference fails; an error of
        `fill` is its cause.
        """

    def prepare(self, shape: tuple[int, ...]) -> None:
        """Make every lane ready for pixels of `shape`, (N, height, width, channels), with N or somewhat fewer images.

        Raises RuntimeError if the first lane cannot run them.
        """


MAX_BATCH = 32  # images; default size of the largest batch an engine runs
GPU_MAX_BATCH = 128  # images; the same for a GPU, which gains up to there


def in_batches(pixels: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
    """Split pixels into batches of at most MAX_BATCH images."""
    return [pixels[start : start + MAX_BATCH] for start in range(0, len(pixels), MAX_BATCH)]
