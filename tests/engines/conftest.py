"""Fixtures of a machine with a fake GPU and of JPEGs' decoder, and helpers that open engines on the GPU."""

from __future__ import annotations

import ctypes
import hashlib
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import cuda.bindings
import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file

from engines.published import manifest, store
from engines.published.store import PublishedModel
from engines.runtimes import registry
from engines.runtimes.engine import Engine
from engines.runtimes.gpu_jpeg.decode import JpegLane
from engines.runtimes.registry import EngineSpec, Runtime, open_engine
from engines.runtimes.tensorrt import engine as tensorrt
from engines.runtimes.tensorrt import gpu, library, plan
from engines.runtimes.tensorrt.library import TensorRT
from tests.engines import fake_gpu, fake_tensorrt
from tests.engines.fake_gpu import GPU
from tests.engines.host_canvas import CPU, HostCanvas, compiled

BOTH: tuple[TensorRT, ...] = ("tensorrt", "tensorrt_rtx")


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[GPU]:
    """Fake GPU with both TensorRT libraries and an empty cache of plans."""
    fake_gpu_state = GPU()
    for name, module in (fake_gpu.modules(fake_gpu_state) | fake_tensorrt.libraries(fake_gpu_state)).items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(cuda.bindings, "runtime", sys.modules["cuda.bindings.runtime"], raising=False)
    monkeypatch.setattr(store, "root", lambda: tmp_path / "models")

    def build(runtime: TensorRT, onnx: Path, max_batch: int) -> plan.Plan:
        built = plan.build(runtime, onnx, max_batch)
        fake_gpu_state.plans[hashlib.sha256(built.data).hexdigest()] = onnx, max_batch
        fake_gpu_state.done["built"] += 1
        return built

    monkeypatch.setattr(tensorrt, "build", build)
    cached_functions = (gpu.device, gpu.name, library.journal, registry.preferred, registry.no_gpu)
    for function in cached_functions:
        function.cache_clear()
    yield fake_gpu_state
    for function in cached_functions:
        function.cache_clear()


def digits_of(model: PublishedModel, count: int) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Return pixels of `count` digits, repeated if the verification set has fewer, and torch's logits."""
    tensors = load_file(model.folder / manifest.VERIFICATION)
    rows = np.arange(count) % len(tensors["pixels"])
    return tensors["pixels"][rows], tensors["logits"][rows]


def opened(model: PublishedModel, name: Runtime, precision: str = "fp32", max_batch: int = 32) -> Engine:
    """Open an engine of a model by the name of its runtime."""
    return open_engine(model, EngineSpec(name, precision), max_batch=max_batch)


@pytest.fixture(scope="session")
def kernel_library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """Kernel for a GPU's JPEGs, compiled for the processor."""
    if not shutil.which("g++"):
        pytest.skip("g++ is not installed")
    return compiled(tmp_path_factory.mktemp("kernel"))


@pytest.fixture
def lane(kernel_library: ctypes.CDLL) -> JpegLane:
    """Lane of nvImageCodec's decoder for the processor."""
    pytest.importorskip("nvidia.nvimgcodec", reason="nvImageCodec is not installed: pip install '.[gpu-jpeg]'")
    return JpegLane(HostCanvas(kernel_library), "CPU_ONLY", CPU, 1)
