"""ONNX Runtime on the CPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from engines.runtimes.engine import EngineError

PRECISIONS = ("fp32", "int8")


class ONNXRuntimeEngine:
    """Engine that runs an ONNX file unchanged."""

    runtime = "onnxruntime"
    lanes = 1

    def __init__(self, onnx: Path, precision: str) -> None:
        """Open `onnx`. Raises EngineError for an unsupported precision or a file that ONNX Runtime cannot read."""
        if precision not in PRECISIONS:
            raise EngineError(f"onnxruntime has no precision {precision!r} on a CPU; it has {', '.join(PRECISIONS)}")
        self.precision = precision
        options = onnxruntime.SessionOptions()
        # INT8 graphs are float16 beside the layers, for which ONNX Runtime has no INT8 kernels on a CPU. Unless told
        # so, it converts the weights for each batch.
        options.add_session_config_entry("session.disable_quant_qdq", str(int(precision == "int8")))
        try:
            self._session = onnxruntime.InferenceSession(onnx, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's errors share no class of their own
            raise EngineError(f"onnxruntime cannot read {onnx}: {error}") from error

    def infer(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return logits, (N, classes), for pixels, (N, height, width, channels)."""
        try:
            logits: NDArray[np.float32] = self._session.run(None, {"pixels": pixels})[0]
        except Exception as error:  # ONNX Runtime's errors share no class of their own
            raise RuntimeError(f"onnxruntime: {error}") from error
        return logits
