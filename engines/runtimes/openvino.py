"""OpenVINO on the CPU."""

from __future__ import annotations

from functools import cache
from importlib.metadata import version
from pathlib import Path

import numpy as np
import openvino
from numpy.typing import NDArray
from openvino import opset13 as ops

from engines.runtimes.cache import cached
from engines.runtimes.engine import EngineError
from engines.runtimes.machine import processor

# Always passed: left alone, OpenVINO runs an fp32 file in bf16 where the processor can. What an INT8 file has in float
# is run in float32: bf16 there gained nothing.
PRECISIONS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16", "int8": "f32"}


class OpenVINOEngine:
    """An ONNX file compiled for this machine's processor.

    With several streams a batch is divided among them, each with its part of the threads: throughput mode. With one,
    all threads work on the whole batch: latency mode. `threads` is OpenVINO's choice, of as many as there are cores,
    unless given.
    """

    runtime = "openvino"

    def __init__(
        self,
        onnx: Path,
        precision: str,
        *,
        streams: int = 1,
        threads: int | None = None,
        sha256: str | None = None,
    ) -> None:
        """Compile `onnx`, or take what was compiled of it before if its `sha256` is given.

        EngineError if the precision is unknown or not this processor's, or OpenVINO cannot read or compile the file.
        """
        if precision not in PRECISIONS:
            raise EngineError(f"openvino has no precision {precision!r}; it has {', '.join(PRECISIONS)}")
        if not supported(precision):
            raise EngineError(f"openvino has no {precision} on this processor")
        self.precision = precision
        options: dict[str, str | int] = {
            "INFERENCE_PRECISION_HINT": PRECISIONS[precision],
            "PERFORMANCE_HINT": "LATENCY" if streams == 1 else "THROUGHPUT",
            "NUM_STREAMS": streams,
        }
        if threads:
            options["INFERENCE_NUM_THREADS"] = threads

        def build() -> openvino.CompiledModel:
            return core().compile_model(onnx, "CPU", options)

        try:
            compiled = (
                cached(
                    (sha256, self.runtime, version("openvino"), processor(), precision),
                    build,
                    lambda made: made.export_model().getvalue(),
                    lambda data: core().import_model(data, "CPU", options),
                )
                if sha256
                else build()
            )
        except RuntimeError as error:
            raise EngineError(f"openvino cannot compile {onnx}: {error}") from error
        runs_in = compiled.get_property("NUM_STREAMS"), compiled.get_property("INFERENCE_NUM_THREADS")
        if runs_in != (streams, threads or runs_in[1]):
            raise EngineError("openvino would run in {} streams and {} threads on this processor".format(*runs_in))
        self._requests = [compiled.create_infer_request() for _ in range(streams)]

    def infer(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Logits, (N, classes), of pixels, (N, height, width, channels)."""
        logits: NDArray[np.float32]
        if len(self._requests) == 1 or len(pixels) == 1:
            logits = self._requests[0].infer({0: pixels}, share_inputs=True)[0]
            return logits
        running = []
        for request, part in zip(self._requests, np.array_split(pixels, len(self._requests)), strict=True):
            if len(part):
                request.start_async({0: part}, share_inputs=True)
                running.append(request)
        for request in running:
            request.wait()
        logits = np.concatenate([request.get_output_tensor(0).data for request in running])
        return logits


@cache
def core() -> openvino.Core:
    """OpenVINO, as long as the process lives.

    Its first sets aside a stack for the signals of the thread that it is made in. Where the last that needed it went in
    another thread, that stack was freed and still in use: the next signal killed the process (2026.4).
    """
    return openvino.Core()


@cache
def supported(precision: str) -> bool:
    """Whether this processor computes in a precision: where it does not, OpenVINO would silently use another."""
    wanted = PRECISIONS[precision]
    entry = ops.parameter([1], openvino.Type.f32)
    net = openvino.Model([ops.relu(entry)], [entry])
    compiled = core().compile_model(net, "CPU", {"INFERENCE_PRECISION_HINT": wanted})
    return bool(compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name() == wanted)
