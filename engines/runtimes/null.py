"""Engines that compute nothing, so that a measured latency is the server's own."""

from __future__ import annotations

import time
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from engines.runtimes.engine import Fill
from engines.runtimes.lanes import LANES

# Milliseconds of a batch by its size: resnet50 in fp16, torch with CUDA graphs, on one NVIDIA H200.
H200_RESNET50_MS = {1: 0.861, 8: 1.283, 32: 2.959, 128: 11.06, 256: 20.79}


class NullEngine:
    """Engine that returns zeros at once."""

    runtime = "null"
    precision = "none"
    lanes = 1

    def __init__(self, classes: int) -> None:
        self._classes = classes

    def infer(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return zeros, (N, classes), for N images."""
        return np.zeros((len(pixels), self._classes), np.float32)


class PacedEngine(NullEngine):
    """Engine that returns zeros after the time that a GPU takes, for trying a server at a GPU's pace without a GPU."""

    runtime = "paced"
    lanes = LANES

    def __init__(self, classes: int) -> None:
        super().__init__(classes)
        self._computing = Lock()

    def infer(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return zeros, (N, classes), for N images, after an H200's time for resnet50; other code may run meanwhile."""
        return self.infer_filled(len(pixels), lambda pointer, stream: None)

    def infer_filled(self, count: int, fill: Fill) -> NDArray[np.float32]:
        """Return zeros, (count, classes), as `infer` does; `fill` is called with no memory."""
        fill(0, 0)
        sizes, milliseconds = zip(*H200_RESNET50_MS.items(), strict=True)
        with self._computing:
            time.sleep(float(np.interp(count, sizes, milliseconds)) / 1000)
        return np.zeros((count, self._classes), np.float32)

    def prepare(self, shape: tuple[int, ...]) -> None:
        """Do nothing: all shapes are ready."""
