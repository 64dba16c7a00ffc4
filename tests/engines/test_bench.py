"""Tests of the benchmark: measured rows, printed tables, and records."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from engines.__main__ import main
from engines.measured import peak, records
from engines.measured.bench import bench
from engines.measured.commands import verify_models
from engines.measured.peak import Peak, bytes_moved
from engines.measured.records import Speed
from engines.published import store
from engines.published.store import PublishedModel
from engines.runtimes.engine import EngineError
from engines.runtimes.onnxruntime import ONNXRuntimeEngine
from engines.runtimes.registry import EngineSpec, Measured
from tests.conftest import Run

PEAK = Peak(device="", runtime_version="", gmacs_per_s={"fp32": 100.0}, gb_per_s=10.0)
PEAKS: dict[str | None, Peak] = {None: PEAK}
InProcess = Callable[..., tuple[object, str, str]]
RUNTIMES: tuple[Measured, ...] = ("openvino", "onnxruntime", "torch")


def test_every_engine_has_a_row_per_batch_size(lenet5: PublishedModel) -> None:
    rows = bench(lenet5, [EngineSpec(runtime, "fp32") for runtime in RUNTIMES], [1, 8], 0.06, PEAKS)
    assert [(row.runtime, row.batch) for row in rows] == [(runtime, batch) for runtime in RUNTIMES for batch in (1, 8)]
    for row in rows:
        assert row.runs >= 3
        assert 0 < row.p50_ms <= row.p99_ms
        assert row.gmacs_per_s == pytest.approx(row.images_per_s * 325_680 / 1e9, rel=1e-6)
        assert row.images_per_s == pytest.approx(1000 * row.batch / row.p50_ms)


def test_an_engine_that_does_not_open_is_left_out(lenet5: PublishedModel, capsys: pytest.CaptureFixture[str]) -> None:
    rows = bench(lenet5, [EngineSpec("openvino", "int8"), EngineSpec("openvino", "fp32")], [1], 0.03, PEAKS)
    assert [row.precision for row in rows] == ["fp32"]
    assert "left out: lenet5:mnist5k-" in capsys.readouterr().err
    with pytest.raises(EngineError, match="none of these engines can be opened"):
        bench(lenet5, [EngineSpec("openvino", "int8")], [1], 0.03, PEAKS)


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> InProcess:
    """Runs `engines bench lenet5` in this process without measuring the peak, and returns exit code, stdout, stderr."""
    monkeypatch.setattr(peak, "measure", lambda _: PEAKS)

    def in_process(*arguments: str) -> tuple[object, str, str]:
        monkeypatch.setattr(sys, "argv", ["engines", "bench", "lenet5", "--seconds", "0.03", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code, *capsys.readouterr()

    return in_process


def test_the_command_prints_a_table_or_json(run: Run, in_process: InProcess, lenet5: PublishedModel) -> None:
    tag = lenet5.manifest.tag
    arguments = ("--runtimes", "openvino", "--precisions", "fp32")
    _, printed, _ = in_process(*arguments, "--threads", "1,2", "--batches", "1,2")
    lines = printed.splitlines()
    assert lines[:2] == ["", tag]
    assert lines[2].split()[:5] == ["runtime", "precision", "streams", "threads", "batch"]
    assert [line.split()[2:5] for line in lines[3:]] == [
        ["1", threads, batch] for threads in ("1", "2") for batch in ("1", "2")
    ]
    rows = json.loads(
        run("engines", "bench", "lenet5", *arguments, "--seconds", "0.03", "--batches", "4", "--json").stdout
    )
    assert [(row["tag"], row["precision"], row["threads"], row["batch"]) for row in rows] == [(tag, "fp32", None, 4)]
    for row in rows:
        assert 0 < row["of_compute"] < 2
        assert row["of_bandwidth"] > 0
        assert 0 < row["memory_mb"] < 1000
    record = records.find(lenet5, "openvino", "fp32")
    assert record
    assert [(speed.threads, speed.batch) for speed in record.speeds] == [(None, 4)]


def test_a_requested_precision_that_is_missing_is_a_failure(in_process: InProcess, lenet5: PublishedModel) -> None:
    status, printed, errors = in_process("--batches", "1", "--runtimes", "openvino", "--precisions", "fp32,int8")
    assert status == 1
    assert " fp32 " in printed
    assert "left out: lenet5:mnist5k-" in errors


@pytest.mark.slow
def test_a_precision_that_one_of_the_runtimes_lacks_is_left_out(in_process: InProcess, lenet5: PublishedModel) -> None:
    elsewhere = ("--runtimes", "torch,onnxruntime", "--precisions", "fp32,bf16")  # torch alone has bf16
    status, _, errors = in_process("--batches", "1", *elsewhere)
    assert status == 0
    assert "left out: onnxruntime has no precision 'bf16'" in errors


def test_a_record_that_cannot_be_written_is_an_error(run: Run, lenet5: PublishedModel, tmp_path: Path) -> None:
    shutil.copytree(store.root(), tmp_path / "models")
    (tmp_path / "convserve-records").write_text("a file where the folder would be")
    refused = run("engines", "verify", "lenet5", "--runtimes", "openvino", check=False, BENTOML_HOME=str(tmp_path))
    assert refused.returncode == 1
    assert "faithful" in refused.stdout
    assert refused.stderr.splitlines()[-1].startswith("error: ")
    assert "convserve-records" in refused.stderr


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_rows_are_printed_even_if_their_record_cannot_be_written(
    in_process: InProcess,
    lenet5: PublishedModel,
    monkeypatch: pytest.MonkeyPatch,
    form: list[str],
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(records, "keep", full)
    status, printed, _ = in_process("--batches", "2", "--precisions", "fp32", *form)
    assert re.fullmatch(r"error: .*No space left on device.*", str(status))
    assert "openvino" in printed
    assert not form or [row["batch"] for row in json.loads(printed)] == [2, 2]


def test_without_a_published_model_the_error_says_how_to_publish(run: Run, tmp_path: Path) -> None:
    refused = run("engines", "verify", check=False, BENTOML_HOME=str(tmp_path))
    assert refused.returncode == 1
    assert refused.stderr == "error: no model is published: python -m training publish CHECKPOINT\n"


def test_an_engine_that_fails_in_a_batch_stops_no_other(
    lenet5: PublishedModel, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    infer = ONNXRuntimeEngine.infer

    def one_by_one(engine: ONNXRuntimeEngine, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        if len(pixels) > 1:
            raise RuntimeError("out of memory")
        return infer(engine, pixels)

    monkeypatch.setattr(ONNXRuntimeEngine, "infer", one_by_one)
    assert verify_models([lenet5], ["onnxruntime", "openvino"], "fp32", []) == 0
    failed, faithful = capsys.readouterr().out.splitlines()
    assert failed.endswith("cannot run: out of memory")
    assert faithful.endswith("faithful")


def test_the_error_names_a_model_that_is_not_published(run: Run, lenet5: PublishedModel) -> None:
    refused = run("engines", "bench", "lenet6", check=False)
    assert refused.returncode == 2
    assert f"lenet6 is not published; there are {lenet5.manifest.tag}" in refused.stderr


def test_an_engine_is_bound_by_the_nearer_peak(lenet5: PublishedModel) -> None:
    (row,) = bench(lenet5, [EngineSpec("openvino", "fp32")], [1], 0.03, PEAKS)

    def speed(of_compute: float | None, of_bandwidth: float | None) -> Speed:
        return row.model_copy(update={"of_compute": of_compute, "of_bandwidth": of_bandwidth})

    assert speed(None, None).bound is None
    assert speed(of_compute=0.5, of_bandwidth=0.4).bound == "by arithmetic: 50% of its peak"
    assert speed(of_compute=0.5, of_bandwidth=0.7).bound == "by memory: 70% of its bandwidth"
    assert speed(of_compute=0.1, of_bandwidth=0.2).bound == "by neither: 10% of the arithmetic, 20% of the bandwidth"


def test_bytes_moved_are_weights_once_and_activations_per_image(lenet5: PublishedModel) -> None:
    cost = lenet5.manifest.complexity
    one, two = (bytes_moved(cost, "fp32", batch) for batch in (1, 2))
    layers = [layer for layer in cost.layers if layer.macs]
    assert two - one == sum(layer.input_bytes + layer.output_bytes for layer in layers)
    assert 2 * one - two == sum(layer.param_bytes for layer in layers)
    assert bytes_moved(cost, "int8", 1) == one / 4
    assert cost.intensity == pytest.approx(2 * cost.macs / one, abs=0.01)


def test_the_table_shows_the_records(run: Run, in_process: InProcess, lenet5: PublishedModel) -> None:
    run("engines", "verify", "lenet5", "--runtimes", "openvino", "--precisions", "fp32")
    in_process("--runtimes", "openvino", "--batches", "8")
    heads, _, cells = (
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in run("engines", "table", "lenet5").stdout.splitlines()[2:]
    )
    row = dict(zip(heads, cells, strict=True))
    assert row["model"] == "`lenet5`"
    assert row["input"] == "1x32x32"
    assert float(row["top-1 of torch fp32"].rstrip("%")) > 95
    assert float(row["openvino fp32: images/s"].replace(",", "")) > 0
    assert row["its images/s"] == row["openvino fp32: images/s"]
    assert row["openvino int8: images/s"] == row["times onnxruntime fp32"] == "-"
    assert row["`auto` chooses"].startswith("openvino fp32")
    record = records.find(lenet5, "openvino", "fp32")
    assert record
    assert record.problem is None
