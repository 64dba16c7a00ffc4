"""Tests of evaluation, by figures that can be counted by hand."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from engines.published.store import PublishedModel
from models.zoo import ZOO
from tests.conftest import Run
from training import checkpoint
from training.evaluate import calibration_error, evaluate
from training.report import picture_of
from training.results import add, find, read, table, write_table
from training.significance import wilson


def test_by_hand() -> None:
    outputs = np.full((4, 7), -10, np.float32)
    targets = np.array([0, 1, 2, 2])
    for row, order in enumerate(([0], [2, 1], [2], [6, 5, 4, 3, 1, 2])):  # best first
        outputs[row, order] = -np.arange(len(order), dtype=np.float32)
    found = evaluate(outputs, targets)
    assert (found.top1, found.top5) == (0.5, 0.75)
    assert found.per_class[:3].tolist() == [1, 0, 0.5]
    assert np.isnan(found.per_class[3:]).all()
    assert found.confusion[2].tolist() == [0, 0, 1, 0, 0, 0, 1]


def test_calibration_by_hand() -> None:
    # two classes at 0.9 and right in four of five: |0.9 - 0.8|; one at 0.6 and wrong
    confident, unsure = np.log([0.9, 0.1]), np.log([0.6, 0.4])
    outputs = np.array([confident] * 5 + [unsure], np.float32)
    targets = np.array([0, 0, 0, 0, 1, 1])
    assert calibration_error(outputs, targets) == pytest.approx((5 * 0.1 + 0.6) / 6, abs=1e-6)


@pytest.mark.parametrize("what", ["checkpoint", "tag"])
def test_a_checkpoint_and_its_published_model(
    what: str, run: Run, lenet5: PublishedModel, lenet5_checkpoint: Path, tmp_path: Path
) -> None:
    model = lenet5.manifest.tag if what == "tag" else str(lenet5_checkpoint)
    printed = run("training", "evaluate", model, "--picture", tmp_path / "confusion.png").stdout
    assert ("openvino, fp32" if what == "tag" else "torch, fp32") in printed
    assert f"top-1              {lenet5.manifest.accuracy['fp32'].top1:.2%}" in printed
    assert (f"kept in the manifest of {lenet5.manifest.tag}" in printed) == (what == "tag")
    assert (
        len([line for line in printed.splitlines() if line.endswith(tuple(f"%  {digit}" for digit in range(10)))]) == 10
    )
    with Image.open(tmp_path / "confusion.png") as picture:
        assert picture.size == (960, 960)


def test_what_cannot_be_evaluated(run: Run, lenet5: PublishedModel) -> None:
    done = run("training", "evaluate", "lenet5:none", check=False)
    assert done.returncode == 1
    assert f"error: lenet5:none is neither a checkpoint's folder nor a tag; tags: {lenet5.manifest.tag}" in done.stderr


def test_results_are_added_once_and_tabled(lenet5_checkpoint: Path, tmp_path: Path) -> None:
    path, saved = tmp_path / "docs" / "results.jsonl", checkpoint.load(lenet5_checkpoint)
    assert find(path, "lenet5", "mnist5k", 0) is None
    add(path, ZOO["lenet5"], saved, 1000)
    write_table(path)
    assert find(path, "lenet5", "mnist5k", 1) is None
    (result,) = read(path)
    assert find(path, "lenet5", "mnist5k", 0) == result
    assert find(path, "lenet5", "mnist5k", 0, start="mnist5k") is None
    assert (result.macs, result.params, result.epochs) == (325_680, 60_000, 15)
    assert result.top1_low < result.top1 < result.top1_high
    assert (tmp_path / "docs" / "results.md").read_text() == table([result], "results.jsonl")


def test_the_interval_is_wilsons() -> None:
    # Wilson 1927; 97.6 % of 1,000 at 95 %
    assert wilson(976, 1000) == pytest.approx((0.9645, 0.9838), abs=1e-4)


def test_the_committed_table_is_of_the_committed_results() -> None:
    rows = read(Path("docs/results.jsonl"))
    assert Path("docs/results.md").read_text() == table(rows, "results.jsonl")
    assert {row.architecture for row in rows} <= ZOO.keys()
    assert len({(row.architecture, row.dataset, row.seed) for row in rows}) == len(rows)
    assert os.path.getsize("docs/results.jsonl") < 1_000_000


def test_each_model_has_a_confusion_matrix_of_its_own(tmp_path: Path) -> None:
    assert picture_of(str(tmp_path)) == tmp_path / "confusion.png"
    assert picture_of("lenet5:mnist5k-5c93254d") == Path("results/confusion-lenet5-mnist5k-5c93254d.png")
