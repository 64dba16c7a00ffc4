"""Tests of torch's engine for GPUs: its lanes, with a stand-in for torch's CUDA, and on any NVIDIA GPU."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from engines.published.store import PublishedModel
from engines.runtimes import torch_gpu
from engines.runtimes.engine import Fill, GpuEngine
from engines.runtimes.registry import EngineSpec, Runtime
from engines.runtimes.tensorrt import gpu
from engines.runtimes.torch import FromPixels, Normalise, open_torch
from engines.runtimes.torch_gpu import RecordedModule, TorchGpuEngine
from models.zoo import ZOO
from tests.conftest import Measured
from tests.engines import fake_torch_cuda
from tests.engines.fake_torch_cuda import TorchCuda, TorchStream
from tests.engines.test_executor import timed
from tests.engines.test_torch import publish
from tests.training.test_export import quick_input
from training.data import DataSet

SHAPE = (32, 32, 1)
TOLERANCE = {"fp32": 1e-3, "fp16": 3e-2, "bf16": 1e-1}  # of the largest logit
TEN = (
    *("lenet5", "alexnet", "nin_cifar10", "googlenet", "resnet20_cifar"),
    *("preact_resnet110", "resnet110_sd", "wrn_16_8", "densenet_bc_100_12", "se_resnet50"),
)
NO_GPU = "torch has no NVIDIA GPU here"


LAYERS = nn.Conv2d(1, 8, 5, stride=2), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(8 * 14 * 14, 10)
NETWORK = FromPixels(nn.Sequential(*LAYERS), Normalise((0.5,), (0.5,))).eval()


def images(count: int) -> NDArray[np.uint8]:
    """Return pixels, (count, height, width, channels), of noise that differs in brightness, as do the logits."""
    rng = np.random.default_rng()
    return (rng.random((count, *SHAPE)) * rng.integers(0, 256, (count, 1, 1, 1))).astype(np.uint8)


@torch.inference_mode()
def agree(logits: NDArray[np.float32], pixels: NDArray[np.uint8]) -> bool:
    """Return True if logits are those of the pixels on the processor."""
    right: NDArray[np.float32] = NETWORK(torch.from_numpy(pixels)).numpy()
    return logits.shape == right.shape and bool(np.abs(logits - right).max() <= 1e-3 * np.abs(right).max())


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> TorchCuda:
    """Stand-in for torch's CUDA on this machine's processor."""
    return fake_torch_cuda.install(monkeypatch)


@pytest.fixture(params=["faked", pytest.param("real", marks=pytest.mark.gpu)])
def engine(request: pytest.FixtureRequest) -> TorchGpuEngine:
    """Engine of the network, on the stand-in, and on a real GPU where there is one."""
    if request.param == "faked":
        request.getfixturevalue("cuda")
    elif not torch.cuda.is_available():
        pytest.skip(NO_GPU)
    return TorchGpuEngine(NETWORK)


def filling(engine: TorchGpuEngine, pixels: NDArray[np.uint8]) -> tuple[object, Fill]:
    """Return memory with the pixels, which must outlive the call, and a function that writes them to the input."""
    source = torch.from_numpy(pixels) if engine.device.type == "cpu" else torch.from_numpy(pixels).pin_memory()

    def fill(pointer: int, stream: int) -> None:
        if engine.device.type == "cpu":
            ctypes.memmove(pointer, source.data_ptr(), pixels.nbytes)
        else:
            gpu.copy(pointer, source.data_ptr(), pixels.nbytes, stream)

    return source, fill


def test_logits_are_the_networks_at_every_batch_size(engine: TorchGpuEngine) -> None:
    assert isinstance(engine, GpuEngine)
    with pytest.raises(RuntimeError, match="torch knows the shape of an image only after"):
        engine.infer_filled(1, lambda *_: None)
    engine.prepare((16, *SHAPE))
    for count in (9, 16, 1, 3, 300, 2, 9):  # smaller batches after larger ones, and more than any recorded inference
        pixels = images(count)
        assert agree(engine.infer(pixels), pixels), count
        memory, fill = filling(engine, pixels)
        assert agree(engine.infer_filled(count, fill), pixels), count
        del memory
    with pytest.raises(RuntimeError, match=r"pixels are \(28, 28, 1\), but must be \(32, 32, 1\)"):
        engine.infer(np.zeros((1, 28, 28, 1), np.uint8))


def test_every_thread_gets_the_logits_of_its_pixels(engine: TorchGpuEngine) -> None:
    def infer(number: int) -> None:
        for turn in range(4):
            pixels = images(1 + (number + turn) % 7)
            memory, fill = filling(engine, pixels)
            logits = engine.infer_filled(len(pixels), fill) if turn % 2 else engine.infer(pixels)
            assert agree(logits, pixels)
            del memory

    with ThreadPoolExecutor(6) as threads:
        list(threads.map(infer, range(12)))
    assert engine.lanes == 2


def test_a_failed_write_leaves_both_lanes_usable(engine: TorchGpuEngine) -> None:
    engine.prepare((4, *SHAPE))
    pixels, inside, leave = images(4), threading.Event(), threading.Event()

    def fails(pointer: int, stream: int) -> None:
        inside.set()
        assert leave.wait(30)
        raise OSError("a broken picture")

    with ThreadPoolExecutor(1) as other:
        failing = other.submit(engine.infer_filled, 4, fails)
        assert inside.wait(30)
        assert agree(engine.infer(pixels), pixels)  # in the second lane, while the first is taken
        leave.set()
        with pytest.raises(OSError, match="a broken picture"):
            failing.result()
    assert agree(engine.infer(pixels), pixels)
    assert engine.lanes == 2


def test_a_lane_that_cannot_be_recorded_is_given_up(
    engine: TorchGpuEngine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    engine.infer(images(4))

    def no_memory(*_: object) -> RecordedModule:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    with monkeypatch.context() as small:
        small.setattr(torch_gpu, "RecordedModule", no_memory)
        engine.prepare((4, *SHAPE))
    assert engine.lanes == 1
    assert "since a second one fails: CUDA out of memory" in caplog.text
    pixels = [images(count) for count in (1, 2, 3, 4)]
    with ThreadPoolExecutor(4) as threads:
        for given, logits in zip(pixels, threads.map(engine.infer, pixels), strict=True):
            assert agree(logits, given)


def test_each_lane_records_each_size_once(cuda: TorchCuda) -> None:
    engine = TorchGpuEngine(NETWORK)
    for size in (8, 4):
        engine.prepare((size, *SHAPE))
    assert cuda.recordings == 4
    for count in (3, 8, 5, 4):
        engine.infer(images(count))
    assert cuda.recordings == 4
    engine.infer(images(2))  # one thread alone: recorded in its lane only
    assert cuda.recordings == 5


def test_a_lane_waits_for_the_weights(cuda: TorchCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[TorchStream] = []

    def synchronize(stream: TorchStream) -> None:
        used.append(stream)

    monkeypatch.setattr(TorchStream, "synchronize", synchronize)
    TorchGpuEngine(NETWORK).infer(images(300))  # without a recording
    assert used
    assert all(cuda.default in stream.waited for stream in used)


def test_a_recording_that_another_thread_ends_is_made_again(cuda: TorchCuda) -> None:
    engine = TorchGpuEngine(NETWORK)
    cuda.ended_recordings = 1
    for count in (4, 8):
        pixels = images(count)
        assert agree(engine.infer(pixels), pixels)
    cuda.ended_recordings = 2
    with pytest.raises(RuntimeError, match="during capture"):
        engine.infer(images(16))
    assert cuda.current_stream(engine.device) is cuda.default
    pixels = images(16)
    assert agree(engine.infer(pixels), pixels)


def test_a_lane_is_filled_while_another_one_computes(cuda: TorchCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = TorchGpuEngine(NETWORK)
    engine.prepare((4, *SHAPE))
    both, streams = threading.Barrier(2, timeout=30), set()

    def waits_for_the_other(stream: TorchStream) -> None:
        streams.add(stream.cuda_stream)
        both.wait()  # breaks unless both lanes have enqueued their work before one of them is synchronised

    monkeypatch.setattr(TorchStream, "synchronize", waits_for_the_other)
    pixels = [images(4), images(3)]
    with ThreadPoolExecutor(2) as threads:
        for given, logits in zip(pixels, threads.map(engine.infer, pixels), strict=True):
            assert agree(logits, given)
    assert len(streams) == 2


def agrees_with_the_processor(folder: Path, lenet5: PublishedModel, digits: DataSet, spec: EngineSpec) -> None:
    """Publish a network with random weights in `folder`, by its name, and compare two threads' logits with torch's."""
    model, pixels, right = publish(folder.name, lenet5, folder, quick_input(folder.name, digits).preprocess)
    engine = open_torch(model, spec.precision, compiled=spec.runtime == "torch_compile")
    assert isinstance(engine, TorchGpuEngine)
    engine.prepare((8, *pixels.shape[1:]))
    batches = [slice(0, 1), slice(0, 3), slice(0, 16), slice(3, 11), slice(11, 16)]
    with ThreadPoolExecutor(2) as threads:
        for rows, logits in zip(batches, threads.map(lambda rows: engine.infer(pixels[rows]), batches), strict=True):
            assert np.abs(logits - right[rows]).max() <= TOLERANCE[spec.precision] * np.abs(right).max(), rows


@pytest.mark.usefixtures("cuda")
@pytest.mark.parametrize(("name", "precision"), [("lenet5", "bf16"), ("resnet20_cifar", "fp32"), ("googlenet", "fp32")])
def test_networks_agree_in_lanes(
    lenet5: PublishedModel, digits: DataSet, tmp_path: Path, name: str, precision: str
) -> None:
    (tmp_path / name).mkdir()
    agrees_with_the_processor(tmp_path / name, lenet5, digits, EngineSpec("torch", precision))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason=NO_GPU)
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize(("name", "runtime"), [*((name, "torch") for name in TEN), ("resnet20_cifar", "torch_compile")])
def test_ten_networks_agree_on_a_gpu(
    lenet5: PublishedModel, digits: DataSet, tmp_path: Path, name: str, runtime: Runtime, precision: str
) -> None:
    (tmp_path / name).mkdir()
    agrees_with_the_processor(tmp_path / name, lenet5, digits, EngineSpec(runtime, precision))


@pytest.fixture
def resnet50() -> Callable[[], TorchGpuEngine]:
    """Return a function that opens resnet50 with random weights in fp16, if torch has a GPU."""
    if not torch.cuda.is_available():
        pytest.skip(NO_GPU)
    module = FromPixels(ZOO["resnet50"].build(1000), Normalise((0.5,) * 3, (0.5,) * 3))
    return partial(TorchGpuEngine, module, "fp16")


@pytest.mark.gpu
def test_two_lanes_of_torch_overlap(resnet50: Callable[[], TorchGpuEngine], measured: Measured) -> None:
    engine, batch = resnet50(), 64
    engine.prepare((batch, 224, 224, 3))
    pixels = np.random.default_rng(0).integers(0, 256, (batch, 224, 224, 3), dtype=np.uint8)
    alone, together = (timed(partial(engine.infer, pixels), threads, 40) for threads in (1, 2))
    measured(f"resnet50, fp16, batch {batch}: {1e3 * alone:.2f} ms in one thread, {1e3 * together:.2f} ms in two")
    assert together < 0.97 * alone


@pytest.mark.gpu
def test_recorded_inferences_of_a_lane_share_their_memory(
    resnet50: Callable[[], TorchGpuEngine], measured: Measured
) -> None:
    engine = resnet50()
    torch.cuda.empty_cache()
    start = torch.cuda.memory_reserved()
    used = []
    for size in (128, 64, 32, 16, 8, 4, 2, 1):
        engine.prepare((size, 224, 224, 3))
        torch.cuda.empty_cache()
        used.append(torch.cuda.memory_reserved() - start)
    sizes = f"{used[0] / 1e6:,.0f} MB at batch 128, {used[-1] / 1e6:,.0f} MB with all smaller ones"
    measured(f"resnet50, fp16, memory of two lanes: {sizes}")
    assert used[-1] < 1.5 * used[0]
