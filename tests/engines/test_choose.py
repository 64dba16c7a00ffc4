"""Tests of the choice of an engine from records of fidelity and speed."""

from __future__ import annotations

import pytest

from engines.measured import records
from engines.measured.records import EngineRecord, Fidelity, Speed
from engines.measured.select_engine import choose
from engines.published import store
from engines.published.store import PublishedModel
from engines.runtimes.registry import Measured

FAITHFUL = Fidelity(images=256, top1=0.97, top5=1, torch_top1=0.97, agreement=1, logit_error=0.01)
FAITHLESS = FAITHFUL.model_copy(update={"agreement": 0.98})


def record(
    runtime: Measured, precision: str, fidelity: Fidelity | None, *rates: float, streams: int = 1, batch: int = 8
) -> EngineRecord:
    """Return the record of an engine with a speed in images a second at `batch`."""
    speeds = tuple(
        Speed(
            tag="", runtime=runtime, precision=precision, streams=streams, threads=None, batch=batch, images_per_s=rate,
            p50_ms=1, p99_ms=2, gmacs_per_s=1, of_compute=None, of_bandwidth=None, memory_mb=1, runs=3,
        )
        for rate in rates
    )  # fmt: skip
    return EngineRecord(
        tag="lenet5:mnist5k-00000000", file_sha256="", runtime=runtime, runtime_version="", device="",
        precision=precision, fidelity=fidelity, speeds=speeds,
    )  # fmt: skip


FP32 = record("openvino", "fp32", FAITHFUL, 100)


def test_without_records_and_gpu_the_choice_is_openvino_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engines.measured.select_engine.preferred", lambda precision: "openvino")
    assert choose([], "auto", "auto") == ("openvino", "fp32", 1, None)
    assert choose([], "torch", "auto") == ("torch", "fp32", 1, None)
    assert choose([], "openvino", "bf16") == ("openvino", "bf16", 1, None)
    assert choose([FP32], "null", "auto") == ("null", "fp32", 1, None)


def test_the_fastest_faithful_engine_is_chosen() -> None:
    faithless = record("openvino", "bf16", FAITHLESS, 300)
    unverified = record("onnxruntime", "fp32", None, 200)
    assert choose([FP32, faithless, unverified], "auto", "auto")[:2] == ("openvino", "fp32")
    verified = record("onnxruntime", "fp32", FAITHFUL, 200)
    assert choose([FP32, faithless, verified], "auto", "auto")[:2] == ("onnxruntime", "fp32")
    assert choose([FP32, faithless, verified], "openvino", "auto")[:2] == ("openvino", "fp32")
    assert choose([FP32, faithless, verified], "auto", "bf16")[:2] == ("openvino", "bf16")  # explicitly requested
    good = record("openvino", "bf16", FAITHFUL, 300)
    assert choose([FP32, good, verified], "auto", "auto")[:2] == ("openvino", "bf16")


def test_speeds_at_other_batch_sizes_do_not_count() -> None:
    others = [record("openvino", "bf16", FAITHFUL, 900, batch=batch) for batch in (1, 32)]
    assert choose([FP32, *others], "auto", "auto")[:2] == ("openvino", "fp32")


def test_several_streams_must_gain_more_than_a_tenth() -> None:
    little = record("openvino", "fp32", FAITHFUL, 109, streams=2)
    assert choose([FP32, little], "auto", "auto").streams == 1
    much = record("openvino", "fp32", FAITHFUL, 111, streams=2)
    assert choose([FP32, much], "auto", "auto").streams == 2
    assert choose([FP32, much], "openvino", "fp32").streams == 2  # streams are chosen even if the engine is requested


def test_several_streams_must_gain_more_than_a_single_image_loses() -> None:
    def both(alone: float) -> EngineRecord:
        """Return a record in which two streams gain a fifth at batch 8, and run single images at the rate `alone`."""
        rows = [(1, 1, 100.0), (1, 8, 100.0), (2, 1, alone), (2, 8, 120.0)]
        records = [record("openvino", "fp32", FAITHFUL, rate, streams=n, batch=batch) for n, batch, rate in rows]
        return FP32.model_copy(update={"speeds": tuple(row for each in records for row in each.speeds)})

    assert choose([both(alone=90.0)], "auto", "auto").streams == 2
    assert choose([both(alone=60.0)], "auto", "auto").streams == 1


def test_another_precision_must_gain_more_than_a_twentieth() -> None:
    assert choose([FP32, record("openvino", "bf16", FAITHFUL, 104)], "auto", "auto").precision == "fp32"
    assert choose([FP32, record("openvino", "bf16", FAITHFUL, 106)], "auto", "auto").precision == "bf16"


def test_a_record_states_why_an_engine_is_not_chosen() -> None:
    assert FP32.problem is None
    assert record("openvino", "bf16", FAITHLESS, 1).problem == "it agrees with torch on 98.0% of 256 images"
    assert str(record("openvino", "bf16", None, 1).problem).startswith("not verified here: python -m engines verify")
    assert str(record("openvino", "bf16", FAITHFUL).problem).startswith(
        "not timed here at batch 8: python -m engines bench"
    )


@pytest.fixture
def model(lenet5: PublishedModel, monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> PublishedModel:
    """Return lenet5, with no record of its engines."""
    monkeypatch.setattr(store, "root", lambda: tmp_path / "models")  # type: ignore[operator]
    return lenet5


def test_records_belong_to_one_version_of_the_runtime(model: PublishedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    assert {(stored.runtime, stored.precision, stored.fidelity) for stored in records.find_all(model)} == {
        ("openvino", "fp32", None),
        ("openvino", "bf16", None),
    }
    kept = records.keep(model, "openvino", "bf16", fidelity=FAITHFUL)
    assert kept in records.find_all(model)
    monkeypatch.setattr(records, "version_of", lambda _: "9999.0")
    assert kept not in records.find_all(model)


def test_fidelity_and_speeds_are_updated_independently(model: PublishedModel) -> None:
    records.keep(model, "openvino", "fp32", speeds=FP32.speeds)
    records.keep(model, "openvino", "fp32", fidelity=FAITHFUL)
    assert records.keep(model, "openvino", "fp32").speeds == FP32.speeds
    again = record("openvino", "fp32", None, 50, streams=2).speeds
    assert records.keep(model, "openvino", "fp32", speeds=again).speeds == again
    stored = records.find(model, "openvino", "fp32")
    assert stored
    assert stored.fidelity == FAITHFUL


def test_a_record_of_another_format_is_ignored_and_logged(
    model: PublishedModel, caplog: pytest.LogCaptureFixture
) -> None:
    records.keep(model, "openvino", "fp32", fidelity=FAITHFUL)
    path = records.path_of(model, "openvino", "fp32")
    path.write_text(path.read_text().replace("file_sha256", "graph_sha256"))
    assert records.find(model, "openvino", "fp32") is None
    assert "the record of openvino in fp32 is not readable by this version" in caplog.text


def test_logits_that_are_not_finite_are_recorded_as_a_problem(model: PublishedModel) -> None:
    broken = FAITHFUL.model_copy(update={"logit_error": float("nan")})
    records.keep(model, "openvino", "fp32", fidelity=broken, speeds=FP32.speeds)
    stored = records.find(model, "openvino", "fp32")
    assert stored
    assert stored.problem == "some logits are not finite"


def test_torch_runs_the_checkpoint_in_unpublished_precisions(model: PublishedModel) -> None:
    assert "fp16" not in model.manifest.precisions
    kept = records.keep(model, "torch", "fp16", fidelity=FAITHFUL)
    assert kept.file_sha256 == model.manifest.files["checkpoint.safetensors"].sha256
    assert records.find(model, "torch", "fp16") == kept
    assert records.find(model, "openvino", "fp16") is None
    assert records.find(model, "openvino", "fp64") is None
