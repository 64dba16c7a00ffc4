"""Engines measured beside each other."""

from __future__ import annotations

import json

import pytest

from engines.bench import bench
from engines.engine import EngineError
from engines.store import PublishedModel
from tests.conftest import Run


def test_every_engine_has_a_row_a_batch(lenet5: PublishedModel) -> None:
    rows = bench(lenet5, [("openvino", "fp32"), ("onnxruntime", "fp32"), ("torch", "fp32")], [1, 8], 0.06)
    assert [(row.runtime, row.batch) for row in rows] == [
        (runtime, batch) for runtime in ("openvino", "onnxruntime", "torch") for batch in (1, 8)
    ]
    for row in rows:
        assert row.runs >= 3
        assert 0 < row.p50_ms <= row.p99_ms
        assert row.gmacs_per_s == pytest.approx(row.images_per_s * 325_680 / 1e9, abs=0.01)


def test_what_cannot_be_opened_is_left_out(lenet5: PublishedModel, capsys: pytest.CaptureFixture[str]) -> None:
    rows = bench(lenet5, [("openvino", "int8"), ("openvino", "fp32")], [1], 0.03)
    assert [row.precision for row in rows] == ["fp32"]
    assert "left out: lenet5:mnist5k-" in capsys.readouterr().err
    with pytest.raises(EngineError, match="none of these engines can be opened"):
        bench(lenet5, [("openvino", "int8")], [1], 0.03)


def test_the_command_prints_a_table_or_json(run: Run, lenet5: PublishedModel) -> None:
    tag = lenet5.manifest.tag
    arguments = ("engines", "bench", tag, "--batches", "1,2", "--seconds", "0.03")
    table = run(*arguments).stdout.splitlines()
    assert table[0].split() == ["runtime", "precision", "batch", "images/s", "p50", "ms", "p99", "ms", "GMAC/s", "MB"]
    assert len(table) == 3
    rows = json.loads(run(*arguments, "--json").stdout)
    assert [(row["tag"], row["precision"], row["batch"]) for row in rows] == [(tag, "fp32", 1), (tag, "fp32", 2)]
