"""Tests of TensorRT's engines on a fake GPU (fake_gpu.py), and on a real GPU where there is one."""

from __future__ import annotations

import gc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from engines.published.store import PublishedModel
from engines.runtimes import registry
from engines.runtimes.engine import EngineError
from engines.runtimes.registry import Runtime
from engines.runtimes.tensorrt.library import TensorRT
from tests.engines import fake_gpu
from tests.engines.conftest import BOTH, digits_of, opened
from tests.engines.fake_gpu import GPU, MB

pytestmark = pytest.mark.filterwarnings("ignore:.*Timing cache operations are no-ops:DeprecationWarning")


@pytest.fixture(
    params=[
        *(pytest.param(name, id=f"{name} faked") for name in BOTH),
        *(pytest.param(name, marks=pytest.mark.gpu) for name in (*BOTH, "torch")),
    ]
)
def on_gpu(request: pytest.FixtureRequest) -> Runtime:
    """Name of each GPU runtime, on the fake GPU and on a real GPU where there is one."""
    name: Runtime = request.param
    if "gpu" not in request.node.keywords:
        request.getfixturevalue("fake")
        return name
    try:
        registry.check(name)
    except EngineError as error:
        pytest.skip(str(error))
    return name


@pytest.mark.parametrize("batch", [1, 3, 32, 100])
def test_logits_equal_those_of_torch(on_gpu: Runtime, lenet5: PublishedModel, batch: int) -> None:
    pixels, expected = digits_of(lenet5, batch)
    engine = opened(lenet5, on_gpu)
    for _ in range(3):
        logits = engine.infer(pixels)
        assert logits.dtype == np.float32
        assert np.abs(logits - expected).max() <= 1e-3 * np.abs(expected).max()


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_lower_precisions_agree(on_gpu: Runtime, lenet5_everywhere: PublishedModel, precision: str) -> None:
    if on_gpu == "torch" and precision == "int8":
        pytest.skip("torch has no INT8")
    pixels, expected = digits_of(lenet5_everywhere, 256)
    logits = opened(lenet5_everywhere, on_gpu, precision).infer(pixels)
    assert (logits.argmax(1) == expected.argmax(1)).mean() >= 0.99


def test_later_inferences_do_not_overwrite_earlier_logits(on_gpu: Runtime, lenet5: PublishedModel) -> None:
    pixels, expected = digits_of(lenet5, 8)
    engine = opened(lenet5, on_gpu)
    first, second = engine.infer(pixels[:4]), engine.infer(pixels[4:])
    together = np.concatenate([first, second])
    assert np.abs(together - expected).max() <= 1e-3 * np.abs(expected).max()


def test_an_engine_runs_in_other_threads_than_the_opening_one(on_gpu: Runtime, lenet5: PublishedModel) -> None:
    pixels, expected = digits_of(lenet5, 5)
    with ThreadPoolExecutor(1) as opener:
        engine = opener.submit(opened, lenet5, on_gpu).result()
    for _ in range(2):
        with ThreadPoolExecutor(1) as device:
            logits = device.submit(engine.infer, pixels).result()
        assert np.abs(logits - expected).max() <= 1e-3 * np.abs(expected).max()


@pytest.mark.parametrize("name", BOTH)
def test_two_engines_run_side_by_side(fake: GPU, lenet5_everywhere: PublishedModel, name: TensorRT) -> None:
    pixels, expected = digits_of(lenet5_everywhere, 5)
    engines = [opened(lenet5_everywhere, name, precision) for precision in ("fp32", "int8")]
    for _ in range(2):
        for engine in engines:
            assert (engine.infer(pixels).argmax(1) == expected.argmax(1)).all()
    assert len(fake.streams) == 4  # one for each lane


@pytest.mark.parametrize("name", BOTH)
def test_pixels_cross_the_bus_as_bytes_and_graphs_are_recorded_once(
    fake: GPU, lenet5: PublishedModel, name: TensorRT
) -> None:
    engine = opened(lenet5, name)  # runs one image in each lane
    fake.done.clear()
    pixels, _ = digits_of(lenet5, 32)
    for count in (5, 8, 7):
        engine.infer(pixels[:count])
    assert fake.done["graph"] == 1  # for batches of 8
    assert fake.done["launch"] == 3
    assert fake.done["compiled"] == (1 if name == "tensorrt_rtx" else fake.done["compiled"])
    runs = 3 + 1  # and one run before the graph is recorded
    assert fake.done["bytes to the GPU"] == (5 + 8 + 7) * 32 * 32
    assert fake.done["bytes from the GPU"] == runs * 8 * 10 * 4
    engine.infer(np.concatenate([pixels] * 3)[:70])
    assert fake.done["inference"] == runs + 1 + 3  # 32, 32 and 6, and one run before the graph of 32 is recorded


@pytest.mark.parametrize("name", BOTH)
def test_a_deleted_engine_frees_its_memory_and_graphs(fake: GPU, lenet5: PublishedModel, name: TensorRT) -> None:
    engine = opened(lenet5, name)
    engine.infer(digits_of(lenet5, 9)[0])
    assert fake.memory
    assert fake.pinned
    assert fake.captures
    assert len(fake.captures.executables) == 3  # for 1 in each lane, and for 16
    assert not fake.captures.graphs
    del engine
    gc.collect()
    assert not fake.captures.executables
    assert not fake.memory
    assert not fake.pinned


@pytest.mark.parametrize("name", BOTH)
def test_an_engine_runs_without_cuda_graphs(
    fake: GPU, lenet5: PublishedModel, name: TensorRT, caplog: pytest.LogCaptureFixture
) -> None:
    fake.records_graphs = False
    pixels, expected = digits_of(lenet5, 6)
    logits = opened(lenet5, name).infer(pixels)
    assert np.abs(logits - expected).max() <= 1e-3 * np.abs(expected).max()
    assert fake.done["launch"] == 0
    assert "there is no CUDA graph: cudaErrorStreamCaptureInvalidated" in caplog.text


@pytest.mark.parametrize("name", BOTH)
def test_pixels_of_another_size_are_refused(fake: GPU, lenet5: PublishedModel, name: TensorRT) -> None:
    engine = opened(lenet5, name)
    with pytest.raises(RuntimeError, match=r"pixels are \(1, 1, 1\), but must be \(32, 32, 1\)"):
        engine.infer(np.zeros((2, 1, 1, 1), np.uint8))
    assert fake.done["inference"] == 3  # one for each lane's recording, and one of `open_engine`


@pytest.mark.parametrize("name", BOTH)
def test_batches_are_halved_where_memory_is_short(
    fake: GPU, lenet5: PublishedModel, name: TensorRT, caplog: pytest.LogCaptureFixture
) -> None:
    fake.total = 10 * MB
    engine = opened(lenet5, name)
    assert "would need 32 MB of GPU memory for batches of 32; 10 are free: batches are halved" in caplog.text
    pixels, expected = digits_of(lenet5, 20)
    assert (engine.infer(pixels).argmax(1) == expected.argmax(1)).all()
    assert max(map(len, fake.memory.values())) == 8 * MB
    assert engine.lanes == 1  # the memory of one batch is left, not that of two
    assert "an engine runs one batch at a time from now on, since a second one fails: CUDA_ERROR_OUT" in caplog.text


def test_memory_of_a_deleted_engine_is_used_again(
    fake: GPU, lenet5: PublishedModel, caplog: pytest.LogCaptureFixture
) -> None:
    fake.total = 70 * MB  # two lanes of batches of 32
    for _ in range(3):
        engine = opened(lenet5, "tensorrt_rtx")
        assert engine.lanes == 2
        del engine
        gc.collect()
    assert fake.kept
    assert "batches are halved" not in caplog.text


@pytest.mark.parametrize("name", BOTH)
def test_an_error_names_the_memory_that_one_image_needs(fake: GPU, lenet5: PublishedModel, name: TensorRT) -> None:
    fake.total, fake.needed_per_image = 10 * MB, 11 * MB
    with pytest.raises(EngineError, match=f"{name} needs 11 MB of GPU memory for batches of 1; 10 are free"):
        opened(lenet5, name)
    fake.refusal = "out of memory"
    fake.done.clear()
    with pytest.raises(EngineError, match=r"refuses a plan of \d+ MB, where 10 MB are free: out of memory"):
        opened(lenet5, name)
    assert fake.done["built"] == 0  # the cached plan is still valid


@pytest.mark.parametrize("name", BOTH)
def test_an_error_of_cuda_is_reported(
    fake: GPU, lenet5: PublishedModel, name: TensorRT, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(self: object) -> None:
        raise fake_gpu.CUDAError("CUDA_ERROR_LAUNCH_FAILED")

    engine = opened(lenet5, name)
    pixels, _ = digits_of(lenet5, 2)
    with monkeypatch.context() as broken:
        broken.setattr(fake_gpu.Stream, "sync", fails)
        with pytest.raises(RuntimeError, match=f"{name}: CUDA_ERROR_LAUNCH_FAILED"):
            engine.infer(pixels)
    monkeypatch.setattr(fake_gpu.Device, "create_stream", fails)
    with pytest.raises(EngineError, match=f"{name}: CUDA_ERROR_LAUNCH_FAILED"):
        opened(lenet5, name)
    assert fake.done["built"] == 1
