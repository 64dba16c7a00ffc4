"""Training repeats, resumes exactly, and loses nothing when killed."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from models.zoo import ZOO, build
from tests.conftest import Run
from tests.serving import ROOT
from training import checkpoint
from training.checkpoint import CheckpointError
from training.recipe import MNIST
from training.train import LOG, Normalise, learning_rate, make_optimizer, map_loss, train_epoch, translate


def test_lenet5_reaches_97_percent(lenet5_checkpoint: Path) -> None:
    saved = checkpoint.load(lenet5_checkpoint)
    assert saved.done
    assert saved.epochs[-1].top1 >= 0.97
    assert saved.optimizer is None
    log = [json.loads(line) for line in (lenet5_checkpoint / LOG).read_text().splitlines()]
    assert log == [epoch.model_dump() for epoch in saved.epochs]
    assert {path.name for path in lenet5_checkpoint.iterdir()} == {checkpoint.FILE, LOG, saved.weights.file}


def arguments(out: Path, *more: str) -> list[str]:
    return ["training", "lenet5", "--epochs", "2", "--seed", "3", "--out", str(out), *more]


@pytest.fixture(scope="module")
def uninterrupted(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("train") / "uninterrupted"
    run(*arguments(out))
    return out


def test_killed_and_resumed_ends_as_if_never_stopped(run: Run, uninterrupted: Path, tmp_path: Path) -> None:
    out = tmp_path / "killed"
    command = [sys.executable, "-m", *arguments(out)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout
        assert "epoch 1/2" in process.stdout.readline()
        process.kill()
    assert process.returncode == -signal.SIGKILL
    partial = checkpoint.load(out)
    assert len(partial.epochs) == 1
    assert partial.optimizer
    assert "epoch 2/2" in run(*arguments(out, "--resume")).stdout
    resumed, expected = checkpoint.load(out), checkpoint.load(uninterrupted)
    assert resumed.weights.sha256 == expected.weights.sha256
    assert [epoch.loss for epoch in resumed.epochs] == [epoch.loss for epoch in expected.epochs]
    assert len((out / LOG).read_text().splitlines()) == 2


def test_a_finished_run_is_left_alone(run: Run, uninterrupted: Path) -> None:
    before = checkpoint.load(uninterrupted)
    assert "has all its 2 epochs" in run(*arguments(uninterrupted, "--resume")).stdout
    assert checkpoint.load(uninterrupted) == before


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ([], "--resume goes on with it"),
        (["--resume", "--seed", "4"], "another seed"),
        (["--resume", "--epochs", "3"], "another recipe"),
    ],
)
def test_another_run_is_not_overwritten(run: Run, uninterrupted: Path, more: list[str], message: str) -> None:
    done = run(*arguments(uninterrupted, *more), check=False)
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_ctrl_c_says_how_to_go_on(tmp_path: Path) -> None:
    # where tests run in the background the signal is ignored, and their children inherit that
    heed = "import runpy, signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    code = heed + "runpy.run_module('training', run_name='__main__', alter_sys=True)"
    command = [sys.executable, "-c", code, *arguments(tmp_path / "out")[1:]]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate()
    assert process.returncode == 130
    assert stderr.endswith("stopped; --resume goes on from the last whole epoch\n")
    assert checkpoint.load(tmp_path / "out").epochs


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["lenet6"], "no recipe for 'lenet6'"),
        (["lenet5", "--data", "imagenet"], "invalid choice"),
        (["lenet5", "--epochs", "0"], "--epochs must be at least 1"),
        (["publish", "nowhere"], "nowhere is no checkpoint"),
    ],
)
def test_a_wrong_command_is_a_line(run: Run, words: list[str], message: str) -> None:
    done = run("training", *words, check=False)
    assert done.returncode != 0
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_damaged_checkpoint_is_named(run: Run, uninterrupted: Path, tmp_path: Path) -> None:
    weights = checkpoint.load(uninterrupted).weights.file
    for path in uninterrupted.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / weights).write_bytes(b"other")
    with pytest.raises(CheckpointError, match=f"{weights} is damaged"):
        checkpoint.load(tmp_path)
    (tmp_path / weights).unlink()
    with pytest.raises(CheckpointError, match=f"{weights} is missing"):
        checkpoint.load(tmp_path)
    (tmp_path / checkpoint.FILE).write_text("{}")
    with pytest.raises(CheckpointError, match=r"checkpoint.json is damaged"):
        checkpoint.load(tmp_path)


def test_the_rate_warms_up_to_its_peak_and_ends_at_zero() -> None:
    recipe = MNIST["lenet5"]
    assert learning_rate(recipe, 0.5) == recipe.lr / 2
    assert learning_rate(recipe, recipe.warmup_epochs) == recipe.lr
    assert learning_rate(recipe, (recipe.epochs + recipe.warmup_epochs) / 2) == pytest.approx(recipe.lr / 2)
    assert learning_rate(recipe, recipe.epochs) == pytest.approx(0)
    assert learning_rate(replace(recipe, epochs=1), 1.0) == recipe.lr


def test_the_map_loss_by_hand() -> None:
    # equation 9: y_correct + log(exp(-j) + sum of exp(-y)), the logits being -y
    distances = torch.tensor([[3.0, 5.0]])
    expected = 3 + torch.log(torch.exp(torch.tensor(-33.6)) + torch.exp(-distances).sum())
    assert map_loss(-distances, torch.tensor([0])).item() == pytest.approx(expected.item())


def test_auxiliary_heads_train_by_their_weight() -> None:
    def gradients(weight: float) -> dict[str, torch.Tensor]:
        recipe = replace(MNIST["googlenet"], lr=0, precision="fp32", shift=0, batch=4, auxiliary=weight)
        torch.manual_seed(0)
        net = build("googlenet", 10)
        pixels = torch.randint(256, (4, 3, ZOO["googlenet"].small, ZOO["googlenet"].small), dtype=torch.uint8)
        train_epoch(net, make_optimizer(recipe, net), Normalise(recipe), (pixels, torch.arange(4)), recipe, 1)
        return {name: parameter.grad for name, parameter in net.named_parameters() if parameter.grad is not None}

    without, single, double = gradients(0), gradients(0.3), gradients(0.6)
    for head in ("aux1.fc2.weight", "aux2.fc2.weight"):
        assert without[head].abs().max() == 0
        assert single[head].abs().max() > 0
        torch.testing.assert_close(double[head], 2 * single[head])
    torch.testing.assert_close(double["fc.weight"], without["fc.weight"])
    assert not torch.equal(double["conv1.conv.weight"], without["conv1.conv.weight"])


def test_translation_moves_by_whole_pixels_and_fills() -> None:
    torch.manual_seed(0)
    pixels = torch.zeros(200, 1, 5, 5, dtype=torch.uint8)
    pixels[:, 0, 2, 2] = 9
    moved = translate(pixels, 2, fill=1)
    assert moved.shape == pixels.shape
    assert ((moved == 9).sum((1, 2, 3)) == 1).all()
    places = {tuple(place) for place in (moved[:, 0] == 9).nonzero()[:, 1:].tolist()}
    assert places == {(row, column) for row in range(5) for column in range(5)}
    assert moved.eq(1).any()
    assert translate(pixels, 0, fill=1) is pixels
