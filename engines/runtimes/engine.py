"""What every runtime offers."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class EngineError(Exception):
    """An engine that cannot be made or run here; says what to do about it."""


class Engine(Protocol):
    """A model ready to run; `infer` is called from one thread at a time."""

    @property
    def runtime(self) -> str:
        """Its name, such as "openvino"."""

    @property
    def precision(self) -> str:
        """What it computes in, such as "fp32"."""

    def infer(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Logits, (N, classes), of pixels, (N, height, width, channels)."""


MAX_BATCH = 32


def in_batches(pixels: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
    """The same pixels, at most 32 images at a time."""
    return [pixels[start : start + MAX_BATCH] for start in range(0, len(pixels), MAX_BATCH)]
