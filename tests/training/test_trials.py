"""Commands around a training: dry run, rate finder, further logs, the page of an evaluation, fine-tuning to serving."""

from __future__ import annotations

import csv
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from engines.runtimes.torch import FromPixels, Normalise
from models.zoo import ZOO
from tests.conftest import Run, only_model
from tests.training.small import ALONE, few
from training import checkpoint
from training.__main__ import main
from training.class_maps import class_maps
from training.data import Arrays, DataSet
from training.evaluate import probabilities, reliability
from training.find_rate import proposal
from training.logs import CSV, TENSORBOARD
from training.recipes import quick
from training.train import TrainingOptions, TrainingRun, train

LENET = ZOO["lenet5_modern"]


def test_a_dry_run_says_the_costs_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["lenet5_modern", "--dry-run", "--out", str(tmp_path / "out")])
    said = capsys.readouterr().out
    assert "lenet5_modern on mnist5k: input 32x32x1, batch 32\n" in said
    assert re.search(r"epochs 1 to 15, all layers but frozen ones: [\d,]+ images/s", said)
    assert re.search(r"15 epochs: 0\.\d\d hours; memory [\d.]+ GB; checkpoints 1 MB in .*; nothing was written", said)
    assert not (tmp_path / "out").exists()


def test_the_rate_finder_proposes_a_rate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["lenet5_modern", "--find-rate", "--out", str(tmp_path)])
    said = capsys.readouterr().out
    assert re.search(r"lenet5_modern on mnist5k, adamw: the loss falls fastest at .*: --set lr=\S+; ", said)
    assert (tmp_path / "find_rate.png").read_bytes().startswith(b"\x89PNG")
    rows = list(csv.DictReader((tmp_path / "find_rate.csv").read_text().splitlines()))
    assert rows[0]["lr"] == "1e-06"
    assert not (tmp_path / checkpoint.FILE).exists()


def test_the_proposal_is_where_the_loss_falls_fastest() -> None:
    rates = [10.0**power for power in range(-5, 1)]
    assert proposal(rates, [2.3, 2.2, 1.2, 0.4, 0.3, 5.0]) == (rates[2], rates[4])
    assert proposal(rates, [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]) == (rates[0], rates[0])


def test_a_log_in_csv_has_the_checkpoints_epochs(digits: DataSet, tmp_path: Path) -> None:
    data = few(digits, 40)
    run = TrainingRun(LENET, replace(quick(LENET, data), epochs=2), 0, tmp_path)
    saved = train(run, data, ALONE, TrainingOptions(logs=("csv",)))
    rows = list(csv.DictReader((tmp_path / CSV).read_text().splitlines()))
    assert [float(row["loss"]) for row in rows] == [epoch.loss for epoch in saved.epochs]
    (tmp_path / CSV).unlink()
    train(run, data, ALONE, TrainingOptions(resume=True, logs=("csv",)))
    assert len((tmp_path / CSV).read_text().splitlines()) == 3


def test_tensorboard_has_the_checkpoints_epochs_once(digits: DataSet, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    data = few(digits, 40)
    run = TrainingRun(LENET, replace(quick(LENET, data), epochs=2), 0, tmp_path)
    for resume in (False, True):
        saved = train(run, data, ALONE, TrainingOptions(resume=resume, logs=("tensorboard",)))
    events = EventAccumulator(str(tmp_path / TENSORBOARD)).Reload()
    assert [event.step for event in events.Scalars("loss")] == [1, 2]
    assert [event.value for event in events.Scalars("top1")] == pytest.approx([epoch.top1 for epoch in saved.epochs])


def test_without_tensorboard_the_remedy_is_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(
        SystemExit, match=r"error: --log tensorboard needs TensorBoard: pip install '\.\[tensorboard\]'"
    ):
        main(["lenet5_modern", "--epochs", "1", "--log", "tensorboard", "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_the_page_shows_the_worst_pictures(
    lenet5_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.html"
    main(["evaluate", str(lenet5_checkpoint), "--picture", str(tmp_path / "matrix.png"), "--page", str(page)])
    assert f"page: {page}" in capsys.readouterr().out
    html = page.read_text()
    assert html.count("<figure class=pictures>") == 24
    assert html.count("data:image/png;base64,") == 2 + 3 * 24
    first = re.search(r"<figcaption>(\d) \((\d+)%\), answered (\d) \((\d+)%\)", html)
    assert first
    assert int(first[2]) < 10 < int(first[4])


def test_bins_of_confidence_hold_every_image() -> None:
    random = np.random.default_rng(0)
    outputs, targets = random.normal(size=(50, 4)).astype(np.float32), random.integers(0, 4, 50)
    bins = reliability(outputs, targets)
    assert sum(each.images for each in bins) == 50
    assert sum(each.right for each in bins) == (outputs.argmax(1) == targets).sum()
    assert sum(each.confidence for each in bins) == pytest.approx(probabilities(outputs).max(1).sum())


class Corner(torch.nn.Module):
    """Network whose second class is the sum of the picture's top left quarter, and whose first is nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.features = torch.nn.Conv2d(1, 1, 1, bias=False)
        torch.nn.init.ones_(self.features.weight)
        self.head = torch.nn.Linear(16, 2, bias=False)
        corner = torch.tensor([[row < 2 and column < 2 for column in range(4)] for row in range(4)])
        with torch.no_grad():
            self.head.weight.copy_(torch.stack([torch.zeros(16), corner.float().flatten()]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.features(x).flatten(1))
        return logits


def test_a_class_map_is_where_the_features_are() -> None:
    pixels = np.zeros((2, 4, 4, 1), np.uint8)
    pixels[:, 0, 1] = 255
    maps = class_maps(FromPixels(Corner(), Normalise((0,), (1,))), pixels, np.array([1, 0]))
    assert maps.shape == (2, 4, 4)
    assert maps[0].argmax() == 1
    assert maps[0].max() == pytest.approx(1)
    assert maps[1].max() == 0  # nothing speaks for the first class


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["lenet5", "--freeze", "stem"], "--freeze is of --from"),
        (["lenet5", "--from", "nowhere"], "nowhere is no checkpoint's folder"),
        (["lenet5", "--teacher", "nowhere"], "there is no architecture 'nowhere'"),
        (["compare", "lenet5"], "compare what?"),
        (["resnet18", "--data", "csv"], "csv needs a path: --data csv:PATH"),
        (["lenet5", "--set", "head_epochs=15"], "head_epochs: 15 of 15 epochs leave none for the other layers"),
    ],
)
def test_options_that_do_not_fit_are_a_line(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exited:
        main([*words, "--out", str(tmp_path / "out")])
    assert exited.value.code
    assert message in capsys.readouterr().err + str(exited.value.code)


def write_digits(digits: DataSet, wanted: range, root: Path) -> None:
    """Write a folder for each of some digits, with twelve pictures."""
    assert isinstance(digits.train.pictures, Arrays)
    for digit in wanted:
        folder = root / f"digit {digit}"
        folder.mkdir(parents=True)
        for index in np.flatnonzero(digits.train.targets == digit)[:12].tolist():
            digits.train.pictures[index].save(folder / f"{index}.png")


@pytest.mark.slow
def test_from_a_checkpoint_to_a_published_model_with_the_folders_labels(
    digits: DataSet, run: Run, tmp_path: Path
) -> None:
    for name, wanted in (("low", range(5)), ("high", range(5, 10))):
        write_digits(digits, wanted, tmp_path / name)
    data = ("--data", f"folder:{tmp_path / 'high'}", "--epochs", "2")
    run(
        "training",
        "lenet5_modern",
        "--data",
        f"folder:{tmp_path / 'low'}",
        "--epochs",
        "1",
        "--out",
        tmp_path / "source",
    )
    tuned = run("training", "lenet5_modern", "--from", tmp_path / "source", *data, "--out", tmp_path / "tuned").stdout
    assert "; starts from lenet5_modern on low\n" in tuned
    home = tmp_path / "bentoml"
    run("training", "publish", tmp_path / "tuned", "--precisions", "fp32", BENTOML_HOME=str(home))
    manifest = only_model(home).manifest
    assert manifest.labels == tuple(f"digit {digit}" for digit in range(5, 10))
    assert manifest.provenance["start"]["title"] == "lenet5_modern on low"
    compared = run(
        *("training", "compare", "lenet5_modern", "--from", tmp_path / "source", *data, "--out", tmp_path / "compared"),
    ).stdout
    assert re.findall(r"^\| (from scratch|head only|tuned) \|", compared, re.M) == [
        "from scratch",
        "head only",
        "tuned",
    ]
