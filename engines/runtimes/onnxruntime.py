"""ONNX Runtime on the CPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from engines.runtimes.engine import EngineError

PRECISIONS = ("fp32", "int8")


class ONNXRuntimeEngine:
    """An ONNX file as it is."""

    runtime = "onnxruntime"

    def __init__(self, onnx: Path, precision: str) -> None:
        """EngineError if it has no such precision, or cannot read the file."""
        if precision not in PRECISIONS:
            raise EngineError(f"onnxruntime has no precision {precision!r} on a CPU; it has {', '.join(PRECISIONS)}")
        self.precision = precision
        try:
            self._session = onnxruntime.InferenceSession(onnx, providers=["CPUExecutionProvider"])
        except Exception as error:  # its errors have no common class of their own
            raise EngineError(f"onnxruntime cannot read {onnx}: {error}") from error

    def infer(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Logits, (N, classes), of pixels, (N, height, width, channels)."""
        try:
            logits: NDArray[np.float32] = self._session.run(None, {"pixels": pixels})[0]
        except Exception as error:  # its errors have no common class of their own
            raise RuntimeError(f"onnxruntime: {error}") from error
        return logits
