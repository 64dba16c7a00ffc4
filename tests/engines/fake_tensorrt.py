"""Fake TensorRT: TensorRT for RTX builds the plans, and OpenVINO runs the graphs that the plans were built from."""

from __future__ import annotations

import hashlib
import types
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import tensorrt_rtx as trt
from numpy.typing import NDArray

from engines.runtimes.openvino import OpenVINOEngine
from tests.engines.fake_gpu import GPU


@dataclass
class RuntimeCache:
    """Cache of kernels, as the shapes that kernels are compiled for."""

    compiled: set[str] = field(default_factory=set)
    compatible: bool = True

    def serialize(self) -> bytes:
        return "\n".join(sorted(self.compiled)).encode()

    def deserialize(self, blob: bytes) -> bool:
        if blob.startswith(b"another driver"):
            return False
        self.compiled |= set(blob.decode().split("\n"))
        return True


class RuntimeConfig:
    """Settings for new execution contexts."""

    strategy: object = None
    dynamic_shapes_kernel_specialization_strategy: object = None

    def __init__(self) -> None:
        self.cache = RuntimeCache()

    def set_execution_context_allocation_strategy(self, strategy: object) -> None:
        self.strategy = strategy

    def create_runtime_cache(self) -> RuntimeCache:
        return RuntimeCache()

    def set_runtime_cache(self, cache: RuntimeCache) -> bool:
        self.cache = cache
        return True


class PlanLoader:
    """Loader of the plans that GPU.plans lists."""

    gpu: GPU

    def __init__(self, logger: trt.ILogger) -> None:
        self.logger = logger

    def deserialize_cuda_engine(self, data: bytes) -> OpenPlan | None:
        self.gpu.check_thread()
        self.gpu.check_idle("a plan", whole_device=True)
        graph = self.gpu.plans.get(hashlib.sha256(data).hexdigest())
        if self.gpu.refusal or graph is None:
            self.logger.log(trt.ILogger.ERROR, self.gpu.refusal or "it was built for compute capability 12.0")
            return None
        self.gpu.done["opened"] += 1
        return OpenPlan(self.gpu, data, *graph)


class OpenPlan:
    """Plan on the fake GPU, run by OpenVINO."""

    def __init__(self, gpu: GPU, data: bytes, onnx: Path, largest: int) -> None:
        self.gpu, self.data, self.largest = gpu, data, largest
        self.running = Lock()  # OpenVINO's engine runs one batch at a time
        self.network = OpenVINOEngine(onnx, "int8" if "int8" in onnx.name else "fp32")
        self.device_memory_size_v2 = gpu.needed_per_image * largest
        model = self.network._requests[0].model_inputs[0].partial_shape
        self.shapes = {"pixels": (-1, *(part.get_length() for part in list(model)[1:]))}
        self.shapes["logits"] = (-1, self.network.infer(np.zeros((1, *self.shapes["pixels"][1:]), np.uint8)).shape[1])

    def get_tensor_shape(self, name: str) -> trt.Dims:
        return trt.Dims(self.shapes[name])

    def serialize(self) -> bytes:
        return self.data

    def create_runtime_config(self) -> RuntimeConfig:
        return RuntimeConfig()

    def create_execution_context(self, config: RuntimeConfig) -> Context:
        assert config.strategy == trt.ExecutionContextAllocationStrategy.USER_MANAGED
        self.gpu.check_idle("a context")
        return Context(self, config.cache)


class Context:
    """Execution context of a plan for one shape."""

    def __init__(self, engine: OpenPlan, cache: RuntimeCache) -> None:
        self.engine, self.gpu, self.cache = engine, engine.gpu, cache
        self.shape: tuple[int, ...] | None = None
        self.addresses: dict[str, int] = {}
        self.activations: tuple[int, int] | None = None

    def set_device_memory(self, address: int, size: int) -> None:
        self.activations = address, size

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        fits = shape[1:] == self.engine.shapes[name][1:] and 1 <= shape[0] <= self.engine.largest
        self.shape = shape if fits else None
        return fits

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return name in self.engine.shapes

    def execute_async_v3(self, handle: int) -> bool:
        stream = self.gpu.streams[handle]
        ready = self.shape and self.activations and self.addresses.keys() == self.engine.shapes.keys()
        if not ready or (stream.recording is not None and str(self.shape) not in self.cache.compiled):
            return False
        if str(self.shape) not in self.cache.compiled:
            self.gpu.done["compiled"] += 1
            self.cache.compiled.add(str(self.shape))
        assert self.shape
        assert self.activations
        shape, addresses, activations, plan, gpu = (
            self.shape, dict(self.addresses), self.activations, self.engine, self.gpu
        )  # fmt: skip

        def run() -> None:
            gpu.write(activations[0], b"\xff" * activations[1])
            pixels: NDArray[np.uint8] = np.frombuffer(gpu.read(addresses["pixels"], int(np.prod(shape))), np.uint8)
            with plan.running:
                gpu.write(addresses["logits"], plan.network.infer(pixels.reshape(shape)).tobytes())
                gpu.done["inference"] += 1

        stream.enqueue(run, "execute")
        return True


def libraries(gpu: GPU) -> dict[str, types.ModuleType]:
    """Return modules that replace both libraries."""

    class BoundLoader(PlanLoader):
        pass

    BoundLoader.gpu = gpu

    class Builder:
        """Builder of TensorRT for RTX, set to the fake GPU's compute capability."""

        def __init__(self, logger: trt.ILogger) -> None:
            self._builder = trt.Builder(logger)

        def __getattr__(self, name: str) -> Any:
            return getattr(self._builder, name)

        def create_builder_config(self) -> trt.IBuilderConfig:
            config = self._builder.create_builder_config()
            config.num_compute_capabilities = 1
            config.set_compute_capability(trt.ComputeCapability.SM89, 0)
            return config

    class ComputeCapability:
        CURRENT = trt.ComputeCapability.SM89
        __members__ = trt.ComputeCapability.__members__

    both = {}
    for name in ("tensorrt", "tensorrt_rtx"):
        both[name] = types.ModuleType(name)
        vars(both[name]).update(vars(trt))
        vars(both[name]).update(Builder=Builder, Runtime=BoundLoader, ComputeCapability=ComputeCapability)
    return both
