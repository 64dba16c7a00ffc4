"""Tests of the cache of TensorRT's plans and kernels, on a fake GPU (fake_gpu.py)."""

from __future__ import annotations

import hashlib
import logging
import re
import sys
from pathlib import Path

import pytest

from engines.published import manifest
from engines.published.store import PublishedModel
from engines.runtimes.tensorrt import engine as tensorrt
from engines.runtimes.tensorrt import gpu, plan
from engines.runtimes.tensorrt.library import TensorRT
from tests.engines import fake_tensorrt
from tests.engines.conftest import BOTH, digits_of, opened
from tests.engines.fake_gpu import GPU

pytestmark = pytest.mark.filterwarnings("ignore:.*Timing cache operations are no-ops:DeprecationWarning")


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


def test_a_plan_prepared_for_several_gpus_is_loaded(fake: GPU, lenet5_everywhere: PublishedModel) -> None:
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
def test_a_damaged_or_refused_plan_is_built_again(
    fake: GPU, lenet5: PublishedModel, name: TensorRT, damage: str, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    opened(lenet5, name)
    if damage == "truncated":
        largest = max((tmp_path / "convserve-engines").iterdir(), key=lambda path: path.stat().st_size)
        largest.write_bytes(largest.read_bytes()[:-1])
        warning = "is damaged, and is compiled again"
    else:
        fake.plans.clear()
        warning = (
            "cannot be read, and is compiled again: .* refuses a plan of .* it was built for compute capability 12.0"
        )
    pixels, expected = digits_of(lenet5, 2)
    assert (opened(lenet5, name).infer(pixels).argmax(1) == expected.argmax(1)).all()
    assert fake.done["built"] == 2
    assert re.search(warning, caplog.text)


@pytest.mark.parametrize("name", BOTH)
def test_another_graph_is_built_anew(
    fake: GPU, lenet5: PublishedModel, lenet5_everywhere: PublishedModel, name: TensorRT
) -> None:
    opened(lenet5, name)
    other = lenet5_everywhere.manifest
    changed = {manifest.ONNX: other.files[manifest.INT8]}
    graph = lenet5_everywhere.folder / manifest.INT8
    stale = lenet5.manifest.files | changed
    tensorrt.TensorRTEngine(graph, "int8", runtime=name, sha256=stale[manifest.ONNX].sha256, max_batch=32)
    assert fake.done["built"] == 2


def test_compiled_kernels_are_cached(fake: GPU, lenet5: PublishedModel, tmp_path: Path) -> None:
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
    monkeypatch.setattr(fake_tensorrt.RuntimeCache, "deserialize", lambda self, blob: False)
    for count in (1, 2):
        opened(lenet5, "tensorrt_rtx")
        assert fake.done["compiled"] == count
    assert "compiled with another driver or library are compiled again" in caplog.text
