"""OpenVINO on the CPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import openvino
from numpy.typing import NDArray

from engines.engine import EngineError

# Always passed: left alone, OpenVINO runs an fp32 file in bf16 where the processor can. What an INT8 file has in float
# is run in float32.
PRECISIONS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16", "int8": "f32"}


class OpenVINOEngine:
    """An ONNX file compiled for this machine's processor."""

    runtime = "openvino"

    def __init__(self, onnx: Path, precision: str) -> None:
        """EngineError if the precision is unknown or OpenVINO cannot read or compile the file."""
        if precision not in PRECISIONS:
            raise EngineError(f"openvino has no precision {precision!r}; it has {', '.join(PRECISIONS)}")
        self.precision = precision
        options = {"INFERENCE_PRECISION_HINT": PRECISIONS[precision], "PERFORMANCE_HINT": "LATENCY"}
        try:
            compiled = openvino.Core().compile_model(onnx, "CPU", options)
        except RuntimeError as error:
            raise EngineError(f"openvino cannot compile {onnx}: {error}") from error
        runs_in = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
        if runs_in != PRECISIONS[precision]:
            raise EngineError(f"openvino has no {precision} on this processor: it would run in {runs_in}")
        self._request = compiled.create_infer_request()

    def infer(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Logits, (N, classes), of pixels, (N, height, width, channels)."""
        logits: NDArray[np.float32] = self._request.infer({0: pixels}, share_inputs=True)[0]
        return logits
