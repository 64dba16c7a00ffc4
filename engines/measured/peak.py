"""Peak rates of this machine in arithmetic and memory bandwidth, and the shares of the peaks that an engine uses.

A processor's peaks are those of OpenVINO, a GPU's those of torch.
"""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Iterable, Mapping
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

import numpy as np
import openvino
from openvino import opset13 as ops

from engines.published import files, store
from engines.published.manifest import Record
from engines.runtimes.engine import EngineError
from engines.runtimes.machine import processor
from engines.runtimes.openvino import PRECISIONS, core, supported
from engines.runtimes.registry import Runtime, check, gpu_of
from models.cost import FLOAT_BYTES, Complexity

ELEMENT_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2, "int8": 1}


class Peak(Record):
    """Peak rates of a device: MACs by precision in a large matrix product, and the bandwidth of its memory.

    The bandwidth is that of reading large weights on a processor, of a copy, read and written, on a GPU.
    """

    device: str
    runtime_version: str  # for people who compare peaks; no code reads the version
    gmacs_per_s: dict[str, float]
    gb_per_s: float

    def shares(self, cost: Complexity, precision: str, batch: int, images_per_s: float) -> tuple[float, float] | None:
        """Return the used shares of peak arithmetic and bandwidth, or None if the precision's peak was not measured."""
        if precision not in self.gmacs_per_s:
            return None
        compute = images_per_s * cost.macs / 1e9 / self.gmacs_per_s[precision]
        memory = images_per_s / batch * bytes_moved(cost, precision, batch) / 1e9 / self.gb_per_s
        return compute, memory


def bytes_moved(cost: Complexity, precision: str, batch: int) -> float:
    """Return the bytes that a batch moves: weights once, and each image's inputs and outputs of layers with MACs."""
    layers = [layer for layer in cost.layers if layer.macs]
    weights = sum(layer.param_bytes for layer in layers)
    activations = sum(layer.input_bytes + layer.output_bytes for layer in layers)
    return (weights + batch * activations) * ELEMENT_BYTES[precision] / FLOAT_BYTES


def measure(runtimes: Iterable[Runtime]) -> dict[str | None, Peak]:
    """Measure the peaks of the devices that runtimes use, by GPU; None is the processor.

    Takes some seconds. Reports on stderr a GPU that cannot be measured, and writes the peaks to `path()` for people.
    """
    peaks: dict[str | None, Peak] = {}
    for gpu in dict.fromkeys(map(gpu_of, runtimes)):
        try:
            peaks[gpu] = peak = of_gpu(gpu) if gpu else of_processor()
        except EngineError as error:
            print(f"no shares of the peak of {gpu}: {error}", file=sys.stderr)
        else:
            files.write(path(peak.device), peak.model_dump_json(indent=1))
    return peaks


def of_processor() -> Peak:
    """Measure the peaks of the processor."""
    products = {name: product_rate(2048, 2048, name, 4) for name in PRECISIONS if supported(name)}
    return rounded(processor(), "openvino", products, FLOAT_BYTES * product_rate(1, 8192, "fp32", 2))


def of_gpu(gpu: str) -> Peak:
    """Measure the peaks of the GPU of that name. Raises EngineError if torch is missing or cannot use the GPU."""
    check("torch")
    try:
        return rounded(gpu, "torch", *import_module("engines.runtimes.torch").rates())
    except RuntimeError as error:  # such as too little free memory
        raise EngineError(str(error)) from error


def rounded(device: str, library: str, products: Mapping[str, float], bytes_per_s: float) -> Peak:
    """Return a peak of rates that were measured in MACs and bytes a second with a library."""
    return Peak(
        device=device,
        runtime_version=version(library),
        gmacs_per_s={precision: round(rate / 1e9, 1) for precision, rate in products.items()},
        gb_per_s=round(bytes_per_s / 1e9, 1),
    )


def path(device: str) -> Path:
    """Return the path of the file that holds the peaks of a device."""
    name = hashlib.sha256(device.encode()).hexdigest()[:12]
    return store.root().parent / "convserve-records" / f"peak-{name}.json"


def product_rate(rows: int, width: int, precision: str, layers: int, runs: int = 8) -> float:
    """Return the highest rate, in MACs a second, of (rows, width) times (width, width), `layers` times in a row."""

    def quantised(value: openvino.Node, limit: float) -> openvino.Node:
        bounds = (np.float32(sign * limit) for sign in (-1, 1, -1, 1))
        return ops.fake_quantize(value, *bounds, levels=255) if precision == "int8" else value

    limit = width**-0.5
    first = last = ops.parameter([rows, width], openvino.Type.f32)
    for _ in range(layers):
        weights = ops.constant(np.full((width, width), limit, np.float32))
        last = ops.matmul(quantised(last, 1), quantised(weights, limit), transpose_a=False, transpose_b=True)
    options = {"INFERENCE_PRECISION_HINT": PRECISIONS[precision], "PERFORMANCE_HINT": "LATENCY"}
    request = core().compile_model(openvino.Model([last], [first]), "CPU", options).create_infer_request()
    values = np.full((rows, width), 0.5, np.float32)
    seconds = []
    for _ in range(runs):
        started = time.perf_counter()
        request.infer({0: values}, share_inputs=True)
        seconds.append(time.perf_counter() - started)
    return rows * width * width * layers / min(seconds)
