"""Peak rates of this machine in arithmetic and memory bandwidth, and the shares of the peaks that an engine uses."""

from __future__ import annotations

import hashlib
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import openvino
from openvino import opset13 as ops

from engines.published import files, store
from engines.published.manifest import Record
from engines.runtimes.machine import processor
from engines.runtimes.openvino import PRECISIONS, core, supported
from models.cost import FLOAT_BYTES, Complexity

ELEMENT_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2, "int8": 1}


class Peak(Record):
    """Peak rates of OpenVINO: MACs by precision in a large matrix product, and bandwidth in reading large weights."""

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


def measure() -> Peak:
    """Measure the peaks of this machine, which takes some seconds, and write them to `path()` for people."""
    peak = Peak(
        device=processor(),
        runtime_version=version("openvino"),
        gmacs_per_s={
            precision: round(product_rate(2048, 2048, precision, 4) / 1e9, 1)
            for precision in PRECISIONS
            if supported(precision)
        },
        gb_per_s=round(FLOAT_BYTES * product_rate(1, 8192, "fp32", 2) / 1e9, 1),
    )
    files.write(path(), peak.model_dump_json(indent=1))
    return peak


def path() -> Path:
    """Return the path of the file that holds the peaks of this machine."""
    name = hashlib.sha256(processor().encode()).hexdigest()[:12]
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
