"""Which engine serves, by what was verified and measured."""

from __future__ import annotations

import pytest

from engines import records, store
from engines.bench import Speed
from engines.choose import choose
from engines.records import Fidelity
from engines.store import PublishedModel

FAITHFUL = Fidelity(images=256, top1=0.97, top5=1, torch_top1=0.97, agreement=1, logit_error=0.01)
FAITHLESS = FAITHFUL.model_copy(update={"agreement": 0.98})


@pytest.fixture
def model(lenet5: PublishedModel, monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> PublishedModel:
    """lenet5, of which nothing is recorded."""
    monkeypatch.setattr(store, "root", lambda: tmp_path / "models")  # type: ignore[operator]
    return lenet5


def speed(images_per_s: float, batch: int = 8) -> Speed:
    return Speed(
        tag="", runtime="", precision="", batch=batch, images_per_s=images_per_s, p50_ms=1, p99_ms=2, gmacs_per_s=1,
        memory_mb=1, runs=3,
    )  # fmt: skip


def test_without_records_it_is_openvino_in_fp32(model: PublishedModel) -> None:
    assert choose(model, "auto", "auto") == ("openvino", "fp32")
    assert choose(model, "torch", "auto") == ("torch", "fp32")
    assert choose(model, "openvino", "bf16") == ("openvino", "bf16")


def test_the_fastest_of_the_faithful(model: PublishedModel) -> None:
    records.keep(model, "openvino", "fp32", fidelity=FAITHFUL, speeds=(speed(100), speed(1, batch=1), speed(900, 32)))
    assert choose(model, "auto", "auto") == ("openvino", "fp32")
    records.keep(model, "openvino", "bf16", fidelity=FAITHLESS, speeds=(speed(300),))
    assert choose(model, "auto", "auto") == ("openvino", "fp32")
    records.keep(model, "onnxruntime", "fp32", speeds=(speed(200),))
    assert choose(model, "auto", "auto") == ("openvino", "fp32")  # that was not verified
    records.keep(model, "onnxruntime", "fp32", fidelity=FAITHFUL)
    assert choose(model, "auto", "auto") == ("onnxruntime", "fp32")
    assert choose(model, "openvino", "auto") == ("openvino", "fp32")
    records.keep(model, "openvino", "bf16", fidelity=FAITHFUL)
    assert choose(model, "auto", "auto") == ("openvino", "bf16")


def test_another_version_of_the_runtime_is_another_engine(
    model: PublishedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    records.keep(model, "openvino", "bf16", fidelity=FAITHFUL, speeds=(speed(300),))
    monkeypatch.setattr(records, "version", lambda _: "9999.0")
    assert choose(model, "auto", "auto") == ("openvino", "fp32")


def test_torch_runs_the_checkpoint_in_precisions_that_no_graph_has(model: PublishedModel) -> None:
    assert "fp16" not in model.manifest.precisions
    record = records.keep(model, "torch", "fp16", fidelity=FAITHFUL)
    assert record.file_sha256 == model.manifest.files["checkpoint.safetensors"].sha256
    assert records.find(model, "torch", "fp16") == record
