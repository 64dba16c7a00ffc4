"""TensorRT plans of architectures with random weights, and the plans in the documentation."""

from __future__ import annotations

from pathlib import Path

import pytest

from engines.measured.plans import Target
from engines.runtimes.tensorrt.library import PRECISIONS
from models.zoo import ZOO
from service.architectures import read_layers
from tests.serving import ROOT
from training.errors import TrainingError
from training.plans import PlanResult, bytes_table, read, sweep, table

RESULTS = ROOT / "docs" / "plans.jsonl"
ADA, AMPERE, TURING = (Target("tensorrt_rtx", 8, [capability]) for capability in ("8.9", "8.6", "7.5"))


def test_what_is_missing_is_built(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "plans.jsonl"
    sweep(["lenet5_modern"], ADA, file)
    rows = read(file, ADA)
    assert [row.precision for row in rows] == list(PRECISIONS)
    assert [row.computed_in for row in rows] == [{"float": 5}, {"half": 5}, {"int8": 5}]
    assert all(row.bytes > 60_000 and row.seconds > 0 and row.layers >= 5 for row in rows)
    fp32_moves, fp16_moves, int8_moves = (row.moved for row in rows)
    assert fp32_moves
    assert fp16_moves
    assert int8_moves
    assert fp16_moves.image < int8_moves.image < fp32_moves.image
    assert int8_moves.batch < fp16_moves.batch < fp32_moves.batch
    assert f"| {int8_moves.of(8) / fp16_moves.of(8):.2f} |" in bytes_table(rows)
    fp32, _, int8 = file.read_text().splitlines(keepends=True)
    file.write_text(fp32 + int8)
    capsys.readouterr()
    sweep(["lenet5_modern"], ADA, file)
    assert capsys.readouterr().out.startswith("lenet5_modern in fp16: ")
    assert file.read_text().splitlines(keepends=True)[:2] == [fp32, int8]
    assert [row.precision for row in read(file, ADA)] == ["fp32", "int8", "fp16"]
    assert read(file, AMPERE) == []


def test_one_that_fails_does_not_keep_the_others_from_theirs(tmp_path: Path) -> None:
    file = tmp_path / "plans.jsonl"
    with pytest.raises(TrainingError, match=r"^not built, .*: lenet5_modern in fp32$"):
        sweep(["lenet5_modern"], TURING, file)
    fp16, int8 = read(file, TURING)
    assert (fp16.precision, fp16.computed_in, fp16.fallen_back) == ("fp16", {"half": 5}, ())
    assert (int8.precision, int8.computed_in["int8"], int8.fallen_back) == ("int8", 2, ("c1", "c3", "c5"))


def test_the_tables_are_those_of_the_committed_results_and_lack_nothing() -> None:
    rows = [PlanResult.model_validate_json(line) for line in RESULTS.read_text().splitlines()]
    page = (ROOT / "docs" / "tensorrt.md").read_text()
    assert table(rows) in page
    assert bytes_table(rows) in page
    assert {(row.architecture, row.precision) for row in rows} == {(name, each) for name in ZOO for each in PRECISIONS}
    for row in rows:
        weighted = sum(layer.macs > 0 for layer in read_layers(row.architecture))
        kind = {"fp32": "float", "fp16": "half", "int8": "int8"}[row.precision]
        assert row.computed_in == {kind: weighted}, row.architecture
        assert not row.fallen_back
