"""Tests that TensorRT is selected where it can run, and that errors name the missing part, on a fake GPU."""

from __future__ import annotations

import logging
import sys

import pytest

from engines.measured.select_engine import choose
from engines.published.store import PublishedModel
from engines.runtimes import registry
from engines.runtimes.engine import EngineError
from engines.runtimes.tensorrt import gpu, library
from tests.engines.conftest import BOTH, opened
from tests.engines.fake_gpu import GPU

pytestmark = pytest.mark.filterwarnings("ignore:.*Timing cache operations are no-ops:DeprecationWarning")


@pytest.mark.parametrize("precision", ["bf16", "fp64"])
@pytest.mark.usefixtures("fake")
def test_an_error_names_the_unsupported_precision(lenet5: PublishedModel, precision: str) -> None:
    with pytest.raises(EngineError, match=f"no precision '{precision}'; (it has fp32, fp16, int8|there are)"):
        opened(lenet5, "tensorrt", precision)


@pytest.mark.usefixtures("fake")
def test_a_gpu_runtime_is_preferred(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_an_old_gpu_or_driver_is_not_used(
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
def test_a_runtime_without_the_precision_is_passed_over(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    assert choose([], "auto", "bf16")[:2] == ("openvino", "bf16")
    assert "not tensorrt: it does not support bf16" in caplog.text
    assert choose([], "auto", "int8")[:2] == ("tensorrt", "int8")


@pytest.mark.usefixtures("fake")
def test_a_library_that_cannot_be_loaded_is_named(lenet5: PublishedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(EngineError, match=r"tensorrt is not installed here: pip install '\.\[tensorrt\]'"):
        opened(lenet5, "tensorrt")

    def broken(name: str) -> None:
        raise ImportError(f"lib{name}.so.11: cannot open shared object file")

    monkeypatch.setattr(library, "import_module", broken)
    with pytest.raises(EngineError, match=r"tensorrt_rtx cannot be loaded: libtensorrt_rtx\.so\.11: cannot open"):
        opened(lenet5, "tensorrt_rtx")


def test_an_error_says_that_there_is_no_gpu(
    fake: GPU, lenet5: PublishedModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    core = sys.modules["cuda.core"]

    def no_driver() -> None:
        raise RuntimeError('"cuda" is an NVIDIA driver library and can only be found via system search')

    monkeypatch.setattr(core, "Device", type("Device", (), {"get_all_devices": staticmethod(no_driver)}))
    monkeypatch.setattr(gpu, "accelerator", lambda: None)
    with pytest.raises(EngineError, match=r"^there is no NVIDIA GPU, or no driver for it \(`nvidia-smi` shows both\)$"):
        opened(lenet5, "tensorrt")
    monkeypatch.setattr(gpu, "accelerator", lambda: "NVIDIA Imaginary")  # but CUDA cannot use the GPU
    with pytest.raises(EngineError, match=r"there is no NVIDIA GPU, or no driver for it .*can only be found via"):
        opened(lenet5, "tensorrt")
    monkeypatch.setattr(core, "Device", type("Device", (), {"get_all_devices": staticmethod(tuple)}))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(EngineError, match="no NVIDIA GPU may be used: CUDA_VISIBLE_DEVICES is ''"):
        opened(lenet5, "tensorrt")
    caplog.set_level(logging.INFO)
    assert choose([], "auto", "auto")[:2] == ("openvino", "fp32")
    assert choose([], "auto", "bf16")[:2] == ("openvino", "bf16")
    assert [record.message for record in caplog.records] == ["no NVIDIA GPU: OpenVINO runs the engines"]
    monkeypatch.setitem(sys.modules, "cuda.core", None)
    with pytest.raises(EngineError, match="cuda-python is not installed"):
        opened(lenet5, "tensorrt_rtx")
