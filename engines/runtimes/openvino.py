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

# The precision is always passed: by default, OpenVINO runs an fp32 file in bf16 where the processor supports bf16. The
# float layers of an INT8 file run in float32, because bf16 made them no faster.
PRECISIONS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16", "int8": "f32"}


class OpenVINOEngine:
    """Engine of an ONNX file compiled for this machine's processor.

    With several streams, a batch is divided among them and each stream has its share of the threads: throughput mode.
    With one stream, all threads work on the whole batch: latency mode. Without `threads`, OpenVINO chooses a number of
    threads up to the number of cores.
    """

    runtime = "openvino"
    lanes = 1

    def __init__(
        self,
        onnx: Path,
        precision: str,
        *,
        streams: int = 1,
        threads: int | None = None,
        sha256: str | None = None,
    ) -> None:
        """Compile `onnx`, or load the compiled model from the cache if `sha256`, the file's checksum, is passed.

        Raises EngineError if the precision is unknown or the processor does not support it, if OpenVINO cannot read or
        compile the file, or if it would run in other numbers of streams or threads.
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
            return core().compile_model(self.source(onnx), "CPU", options)

        try:
            compiled = (
                cached(
                    (sha256, self.runtime, version("openvino"), processor(), precision),
                    build,
                    lambda model: model.export_model().getvalue(),
                    lambda data: core().import_model(data, "CPU", options),
                )
                if sha256
                else build()
            )
        except RuntimeError as error:
            raise EngineError(f"openvino cannot compile {onnx}: {error}") from error
        actual = compiled.get_property("NUM_STREAMS"), compiled.get_property("INFERENCE_NUM_THREADS")
        if actual != (streams, threads or actual[1]):
            raise EngineError("openvino would run in {} streams and {} threads on this processor".format(*actual))
        self._requests = [compiled.create_infer_request() for _ in range(streams)]

    @staticmethod
    def source(onnx: Path) -> Path | openvino.Model:
        """Return what is compiled: the file itself."""
        return onnx

    def infer(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return logits, (N, classes), for pixels, (N, height, width, channels)."""
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
    """Return the process's only OpenVINO core, which lives as long as the process.

    The first core reserves a signal stack for the thread that creates the core. When the core's last user was deleted
    in another thread, OpenVINO freed the stack while it was still in use, and the next signal killed the process
    (OpenVINO 2026.4).

    Weights are read into memory: if a mapped file is overwritten in place, the next inference kills the process.
    """
    shared = openvino.Core()
    shared.set_property({"ENABLE_MMAP": False})
    return shared


@cache
def supported(precision: str) -> bool:
    """Return True if this processor computes in a precision; where it does not, OpenVINO silently uses another one."""
    hint = PRECISIONS[precision]
    parameter = ops.parameter([1], openvino.Type.f32)
    net = openvino.Model([ops.relu(parameter)], [parameter])
    compiled = core().compile_model(net, "CPU", {"INFERENCE_PRECISION_HINT": hint})
    return bool(compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name() == hint)
