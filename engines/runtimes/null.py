"""Engine that computes nothing, so that a measured latency is the server's own."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


class NullEngine:
    """Engine that returns zeros at once."""

    runtime = "null"
    precision = "none"

    def __init__(self, classes: int) -> None:
        self._classes = classes

    def infer(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return zeros, (N, classes), for N images."""
        return np.zeros((len(pixels), self._classes), np.float32)
