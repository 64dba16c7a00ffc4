"""Protocol that the engines of every runtime implement."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class EngineError(Exception):
    """Raised when an engine cannot be opened on this machine; the message says what to do about it."""


class Engine(Protocol):
    """Model that is ready to run; `infer` is called from one thread at a time."""

    @property
    def runtime(self) -> str:
        """Name of the runtime, such as "openvino"."""

    @property
    def precision(self) -> str:
        """Precision of the arithmetic, such as "fp32"."""

    def infer(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return logits, (N, classes), for pixels, (N, height, width, channels).

        Raises RuntimeError if the inference fails.
        """


MAX_BATCH = 32  # images; default size of the largest batch an engine runs
GPU_MAX_BATCH = 128  # images; the same for a GPU, which gains up to there


def in_batches(pixels: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
    """Split pixels into batches of at most MAX_BATCH images."""
    return [pixels[start : start + MAX_BATCH] for start in range(0, len(pixels), MAX_BATCH)]
