"""TensorRT's engines: on a GPU that is none (fake_gpu.py), and where there is one, on it."""

from __future__ import annotations

import gc
import hashlib
import logging
import re
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cuda.bindings
import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file

from engines.measured.select_engine import choose
from engines.published import manifest, store
from engines.published.store import PublishedModel
from engines.runtimes import registry
from engines.runtimes.engine import Engine, EngineError
from engines.runtimes.registry import EngineSpec, Runtime, open_engine
from engines.runtimes.tensorrt import engine as tensorrt
from engines.runtimes.tensorrt import gpu, plan
from engines.runtimes.tensorrt.plan import TensorRT
from tests.engines import fake_gpu
from tests.engines.fake_gpu import GPU, MB

BOTH: tuple[TensorRT, ...] = ("tensorrt", "tensorrt_rtx")
pytestmark = pytest.mark.filterwarnings("ignore:.*Timing cache operations are no-ops:DeprecationWarning")


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[GPU]:
    """A machine with a GPU and both libraries, and an empty cache."""
    there = GPU()
    for name, module in fake_gpu.modules(there).items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(cuda.bindings, "runtime", sys.modules["cuda.bindings.runtime"], raising=False)
    monkeypatch.setattr(store, "root", lambda: tmp_path / "models")

    def build(library: TensorRT, onnx: Path, max_batch: int) -> plan.Plan:
        built = plan.build(library, onnx, max_batch)
        there.plans[hashlib.sha256(built.data).hexdigest()] = onnx, max_batch
        there.done["built"] += 1
        return built

    monkeypatch.setattr(tensorrt, "build", build)
    remembered = (gpu.device, gpu.name, plan.journal, registry.preferred)
    for function in remembered:
        function.cache_clear()
    yield there
    for function in remembered:
        function.cache_clear()


@pytest.fixture(
    params=[
        *(pytest.param(name, id=f"{name} faked") for name in BOTH),
        *(pytest.param(name, marks=pytest.mark.gpu) for name in (*BOTH, "torch")),
    ]
)
def on_gpu(request: pytest.FixtureRequest) -> Runtime:
    """Each runtime of GPUs: on the fake, and where there is a GPU on that."""
    name: Runtime = request.param
    if "gpu" not in request.node.keywords:
        request.getfixturevalue("fake")
        return name
    try:
        registry.check(name)
    except EngineError as error:
        pytest.skip(str(error))
    return name


def digits_of(model: PublishedModel, count: int) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Pixels of real digits, some of them again if there are too few, and torch's logits."""
    tensors = load_file(model.folder / manifest.VERIFICATION)
    which = np.arange(count) % len(tensors["pixels"])
    return tensors["pixels"][which], tensors["logits"][which]


def opened(model: PublishedModel, name: Runtime, precision: str = "fp32", max_batch: int = 32) -> Engine:
    return open_engine(model, EngineSpec(name, precision), max_batch=max_batch)


@pytest.mark.parametrize("batch", [1, 3, 32, 100])
def test_it_answers_as_torch_did(on_gpu: Runtime, lenet5: PublishedModel, batch: int) -> None:
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


def test_an_answer_stays_when_others_follow(on_gpu: Runtime, lenet5: PublishedModel) -> None:
    pixels, expected = digits_of(lenet5, 8)
    engine = opened(lenet5, on_gpu)
    first, second = engine.infer(pixels[:4]), engine.infer(pixels[4:])
    together = np.concatenate([first, second])
    assert np.abs(together - expected).max() <= 1e-3 * np.abs(expected).max()


def test_it_runs_in_other_threads_than_it_was_opened_in(on_gpu: Runtime, lenet5: PublishedModel) -> None:
    pixels, expected = digits_of(lenet5, 5)
    with ThreadPoolExecutor(1) as opener:
        engine = opener.submit(opened, lenet5, on_gpu).result()
    for _ in range(2):
        with ThreadPoolExecutor(1) as device:
            logits = device.submit(engine.infer, pixels).result()
        assert np.abs(logits - expected).max() <= 1e-3 * np.abs(expected).max()


@pytest.mark.parametrize("name", BOTH)
def test_two_engines_side_by_side(fake: GPU, lenet5_everywhere: PublishedModel, name: TensorRT) -> None:
    pixels, expected = digits_of(lenet5_everywhere, 5)
    engines = [opened(lenet5_everywhere, name, precision) for precision in ("fp32", "int8")]
    for _ in range(2):
        for engine in engines:
            assert (engine.infer(pixels).argmax(1) == expected.argmax(1)).all()
    assert len(fake.streams) == 2  # one each


@pytest.mark.parametrize("name", BOTH)
def test_pixels_cross_the_bus_as_bytes_and_graphs_are_recorded_once(
    fake: GPU, lenet5: PublishedModel, name: TensorRT
) -> None:
    engine = opened(lenet5, name)  # which runs one image
    fake.done.clear()
    pixels, _ = digits_of(lenet5, 32)
    for count in (5, 8, 7):
        engine.infer(pixels[:count])
    assert fake.done["graph"] == 1  # of batches of 8
    assert fake.done["launch"] == 3
    assert fake.done["compiled"] == (1 if name == "tensorrt_rtx" else fake.done["compiled"])
    runs = 3 + 1  # and one before the graph is recorded
    assert fake.done["bytes to the GPU"] == runs * 8 * 32 * 32
    assert fake.done["bytes from the GPU"] == runs * 8 * 10 * 4
    engine.infer(np.concatenate([pixels] * 3)[:70])
    assert fake.done["inference"] == runs + 1 + 3  # 32, 32 and 6; and one before the graph of 32 is recorded


@pytest.mark.parametrize("name", BOTH)
def test_nothing_is_left_when_it_goes(fake: GPU, lenet5: PublishedModel, name: TensorRT) -> None:
    engine = opened(lenet5, name)
    engine.infer(digits_of(lenet5, 9)[0])
    assert fake.memory
    assert fake.pinned
    assert fake.captures
    assert len(fake.captures.executables) == 2  # for 1 and for 16
    assert not fake.captures.graphs
    del engine
    gc.collect()
    assert not fake.captures.executables
    assert not fake.memory
    assert not fake.pinned


@pytest.mark.parametrize("name", BOTH)
def test_without_graphs_it_runs_all_the_same(
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
    with pytest.raises(RuntimeError, match=r"pixels are \(1, 1, 1\), and have to be \(32, 32, 1\)"):
        engine.infer(np.zeros((2, 1, 1, 1), np.uint8))
    assert fake.done["inference"] == 2


@pytest.mark.parametrize("name", BOTH)
def test_a_plan_is_built_once(
    fake: GPU, lenet5_everywhere: PublishedModel, name: TensorRT, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(2):
        opened(lenet5_everywhere, name)
    assert fake.done["built"] == 1
    opened(lenet5_everywhere, name, "int8")
    assert fake.done["built"] == 2  # another graph
    opened(lenet5_everywhere, name, max_batch=33)
    assert fake.done["built"] == 3  # another profile, to 64
    monkeypatch.setattr(sys.modules[name], "__version__", "2.0")
    opened(lenet5_everywhere, name)
    assert fake.done["built"] == 4
    monkeypatch.setattr(type(gpu.device()), "compute_capability", (12, 0))
    opened(lenet5_everywhere, name)
    assert fake.done["built"] == 5


def test_a_plan_that_was_prepared_elsewhere_is_taken(fake: GPU, lenet5_everywhere: PublishedModel) -> None:
    graph = lenet5_everywhere.folder / manifest.INT8
    sha256 = lenet5_everywhere.manifest.files[manifest.INT8].sha256
    built = plan.prepare("tensorrt_rtx", graph, sha256, "int8", 32, ["8.6", "8.9"])
    fake.plans[hashlib.sha256(built.data).hexdigest()] = graph, 32
    pixels, expected = digits_of(lenet5_everywhere, 2)
    engine = opened(lenet5_everywhere, "tensorrt_rtx", "int8")
    assert (engine.infer(pixels).argmax(1) == expected.argmax(1)).all()
    assert fake.done["built"] == 0


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("damage", ["truncated", "refused"])
def test_a_plan_that_does_not_fit_is_built_again(
    fake: GPU, lenet5: PublishedModel, name: TensorRT, damage: str, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    opened(lenet5, name)
    if damage == "truncated":
        largest = max((tmp_path / "convserve-engines").iterdir(), key=lambda path: path.stat().st_size)
        largest.write_bytes(largest.read_bytes()[:-1])
        told = "is damaged, and is compiled again"
    else:
        fake.plans.clear()
        told = "cannot be read, and is compiled again: .* refuses a plan of .* it was built for compute capability 12.0"
    pixels, expected = digits_of(lenet5, 2)
    assert (opened(lenet5, name).infer(pixels).argmax(1) == expected.argmax(1)).all()
    assert fake.done["built"] == 2
    assert re.search(told, caplog.text)


@pytest.mark.parametrize("name", BOTH)
def test_a_graph_that_is_published_anew_is_built_anew(
    fake: GPU, lenet5: PublishedModel, lenet5_everywhere: PublishedModel, name: TensorRT
) -> None:
    opened(lenet5, name)
    other = lenet5_everywhere.manifest
    changed = {manifest.ONNX: other.files[manifest.INT8]}
    graph = lenet5_everywhere.folder / manifest.INT8
    stale = lenet5.manifest.files | changed
    tensorrt.TensorRTEngine(graph, "int8", runtime=name, sha256=stale[manifest.ONNX].sha256, max_batch=32)
    assert fake.done["built"] == 2


@pytest.mark.parametrize("name", BOTH)
def test_where_memory_is_short_batches_are_smaller(
    fake: GPU, lenet5: PublishedModel, name: TensorRT, caplog: pytest.LogCaptureFixture
) -> None:
    fake.total = 10 * MB
    engine = opened(lenet5, name)
    assert "would need 32 MB of GPU memory for batches of 32; 10 are free: batches are halved" in caplog.text
    pixels, expected = digits_of(lenet5, 20)
    assert (engine.infer(pixels).argmax(1) == expected.argmax(1)).all()
    assert max(map(len, fake.memory.values())) == 8 * MB


@pytest.mark.parametrize("name", BOTH)
def test_where_one_image_is_too_much_it_says_what_it_takes(fake: GPU, lenet5: PublishedModel, name: TensorRT) -> None:
    fake.total, fake.needed_per_image = 10 * MB, 11 * MB
    with pytest.raises(EngineError, match=f"{name} needs 11 MB of GPU memory for batches of 1; 10 are free"):
        opened(lenet5, name)
    fake.refusal = "out of memory"
    fake.done.clear()
    with pytest.raises(EngineError, match=r"refuses a plan of \d+ MB, where 10 MB are free: out of memory"):
        opened(lenet5, name)
    assert fake.done["built"] == 0  # the plan is as good as before


@pytest.mark.parametrize("precision", ["bf16", "fp64"])
@pytest.mark.usefixtures("fake")
def test_a_precision_it_lacks_is_named(lenet5: PublishedModel, precision: str) -> None:
    with pytest.raises(EngineError, match=f"no precision '{precision}'; (it has fp32, fp16, int8|there are)"):
        opened(lenet5, "tensorrt", precision)


def test_compiled_kernels_are_kept(fake: GPU, lenet5: PublishedModel, tmp_path: Path) -> None:
    pixels, _ = digits_of(lenet5, 3)
    opened(lenet5, "tensorrt_rtx").infer(pixels)
    assert fake.done["compiled"] == 2  # for 1 and for 4
    opened(lenet5, "tensorrt_rtx").infer(pixels)
    assert fake.done["compiled"] == 2
    assert len([path for path in (tmp_path / "convserve-engines").iterdir() if not path.suffix]) == 2


def test_kernels_of_another_driver_are_compiled_again(
    fake: GPU, lenet5: PublishedModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(fake_gpu.RuntimeCache, "deserialize", lambda self, blob: False)
    for count in (1, 2):
        opened(lenet5, "tensorrt_rtx")
        assert fake.done["compiled"] == count
    assert "compiled with another driver or library are compiled again" in caplog.text


@pytest.mark.usefixtures("fake")
def test_where_there_is_a_gpu_it_is_taken(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    caplog.set_level(logging.INFO)
    assert choose([], "auto", "auto")[:2] == ("tensorrt", "fp32")
    assert "tensorrt can run here" in caplog.text
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    registry.preferred.cache_clear()
    assert choose([], "auto", "auto")[:2] == ("tensorrt_rtx", "fp32")
    assert "not tensorrt: tensorrt is not installed here: pip install '.[tensorrt]'" in caplog.text
    monkeypatch.setattr(type(gpu.device()), "compute_capability", (9, 0))
    registry.preferred.cache_clear()
    registry.preferred("fp32")
    assert "not tensorrt_rtx: the GPU has compute capability 9.0, and tensorrt_rtx is for 7.5, 8.0, 8.6" in caplog.text
    monkeypatch.setattr(type(gpu.device()), "compute_capability", (7, 5))
    registry.preferred.cache_clear()
    registry.preferred("fp32")
    assert "not tensorrt_rtx: tensorrt_rtx has only fp16 for compute capability 7.5" in caplog.text


def test_a_gpu_or_a_driver_that_is_too_old_is_not_taken(
    fake: GPU, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    fake.cuda = 12080
    assert registry.preferred("fp32") == "openvino"
    for name in BOTH:
        assert f"not {name}: {name} needs NVIDIA's driver 580 or newer" in caplog.text
    fake.cuda = 13010
    monkeypatch.setattr(type(gpu.device()), "compute_capability", (7, 0))
    registry.preferred.cache_clear()
    assert registry.preferred("fp32") == "openvino"
    assert "not tensorrt: the GPU has compute capability 7.0, and tensorrt is for 7.5 and newer" in caplog.text


@pytest.mark.usefixtures("fake")
def test_a_precision_that_it_lacks_leaves_it_out(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    assert choose([], "auto", "bf16")[:2] == ("openvino", "bf16")
    assert "not tensorrt: it has no bf16" in caplog.text
    assert choose([], "auto", "int8")[:2] == ("tensorrt", "int8")


@pytest.mark.parametrize("name", BOTH)
def test_what_cuda_refuses_is_told(
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


@pytest.mark.usefixtures("fake")
def test_a_library_that_cannot_be_loaded_is_named(lenet5: PublishedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(EngineError, match=r"tensorrt is not installed here: pip install '\.\[tensorrt\]'"):
        opened(lenet5, "tensorrt")

    def broken(name: str) -> None:
        raise ImportError(f"lib{name}.so.11: cannot open shared object file")

    monkeypatch.setattr(plan, "import_module", broken)
    with pytest.raises(EngineError, match=r"tensorrt_rtx cannot be loaded: libtensorrt_rtx\.so\.11: cannot open"):
        opened(lenet5, "tensorrt_rtx")


def test_without_a_gpu_it_says_so(
    fake: GPU, lenet5: PublishedModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    core = sys.modules["cuda.core"]

    def no_driver() -> None:
        raise RuntimeError('"cuda" is an NVIDIA driver library and can only be found via system search')

    monkeypatch.setattr(core, "Device", type("Device", (), {"get_all_devices": staticmethod(no_driver)}))
    with pytest.raises(EngineError, match=r"there is no NVIDIA GPU, or no driver for it .*can only be found via"):
        opened(lenet5, "tensorrt")
    monkeypatch.setattr(core, "Device", type("Device", (), {"get_all_devices": staticmethod(tuple)}))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(EngineError, match="no NVIDIA GPU may be used: CUDA_VISIBLE_DEVICES is ''"):
        opened(lenet5, "tensorrt")
    caplog.set_level(logging.INFO)
    assert choose([], "auto", "auto")[:2] == ("openvino", "fp32")
    for name in BOTH:
        assert f"not {name}: no NVIDIA GPU may be used" in caplog.text
    assert "not torch: there is no NVIDIA GPU that may be used" in caplog.text
    monkeypatch.setitem(sys.modules, "cuda.core", None)
    with pytest.raises(EngineError, match="cuda-python is not installed"):
        opened(lenet5, "tensorrt_rtx")
