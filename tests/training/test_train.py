"""Command `python -m training NAME`: resuming after a kill, refusals, and errors in one line."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import Run
from tests.serving import ROOT
from tests.training.small import arguments
from training import checkpoint
from training.__main__ import main
from training.errors import CheckpointError
from training.train import CURVES, LOG


def test_lenet5_reaches_97_percent(lenet5_checkpoint: Path) -> None:
    saved = checkpoint.load(lenet5_checkpoint)
    assert saved.done
    assert saved.epochs[-1].top1 >= 0.97
    assert saved.optimizer is None
    log = [json.loads(line) for line in (lenet5_checkpoint / LOG).read_text().splitlines()]
    assert log == [epoch.model_dump() for epoch in saved.epochs]
    assert {path.name for path in lenet5_checkpoint.iterdir()} == {checkpoint.FILE, LOG, CURVES, saved.weights.file}


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
        assert next(line for line in process.stdout if "epoch 1/2" in line)
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


def test_a_finished_run_is_left_alone(uninterrupted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = checkpoint.load(uninterrupted)
    main(list(map(str, arguments(uninterrupted, "--resume")[1:])))
    printed = capsys.readouterr().out
    assert printed.endswith(f"has all its 2 epochs\nnow: python -m training publish {uninterrupted}\n")
    assert checkpoint.load(uninterrupted) == before


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ([], "--resume goes on with it"),
        (["--resume", "--seed", "4"], "another seed"),
        (["--resume", "--epochs", "3"], "another recipe"),
    ],
)
def test_another_run_is_not_overwritten(uninterrupted: Path, more: list[str], message: str) -> None:
    with pytest.raises(SystemExit, match=f"^error: .*{message}"):
        main(list(map(str, arguments(uninterrupted, *more)[1:])))


def test_ctrl_c_says_how_to_go_on(tmp_path: Path) -> None:
    # where tests run in the background the signal is ignored, and their children inherit that
    heed = "import runpy, signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    code = heed + "runpy.run_module('training', run_name='__main__', alter_sys=True)"
    command = [sys.executable, "-c", code, *arguments(tmp_path / "out")[1:]]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert next(line for line in process.stdout if "epoch 1/2" in line)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate()
    assert process.returncode == 130
    assert stderr.endswith("stopped; --resume goes on from the last whole epoch\n")
    assert checkpoint.load(tmp_path / "out").epochs


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["lenet6"], "no architecture 'lenet6'"),
        ([], "which architecture?"),
        (["--family", "lenets"], "no family 'lenets'; there are alexnet"),
        (["lenet5", "--data", "imagenet"], "ImageNet is not in data/imagenet"),
        (["lenet5", "--data", "cifar10"], "python -m training download cifar10"),
        (["lenet5", "--set", "rate=1"], "a recipe has no 'rate'; it has"),
        (["lenet5", "--set", "lr=fast"], "lr: Input should be a valid number"),
        (["lenet5", "--set", "batch=0"], "batch: Input should be greater than or equal to 1"),
        (["lenet5", "--set", "optimizer=nesterov", "--set", "momentum=0"], "momentum: nesterov needs some"),
        (["inception_v3", "--set", "edge=32"], "edge: inception_v3 takes 75 pixels at least, not 32"),
        (["lenet5", "resnet18", "--out", "here"], "--out is of one architecture"),
        (["lenet5", "--set", "dropout=1.5"], "dropout: Input should be less than 1"),
        (["alexnet", "--set", 'init_ones=["conv9"]'], "init_ones: alexnet has no layer conv9"),
        (["alexnet", "--set", "zero_init_residual=true"], "zero_init_residual: alexnet has no residual blocks"),
        (["lenet5", "--max-minutes", "0"], "--max-minutes must be more than 0"),
        (["bench", "lenet6"], "no architecture 'lenet6'"),
        (["lenet5", "--epochs", "0"], "--epochs must be at least 1"),
        (["publish", "nowhere"], "nowhere is no checkpoint"),
    ],
)
def test_a_wrong_command_is_a_line(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exited:
        main(words)
    assert exited.value.code
    assert message in capsys.readouterr().err + str(exited.value.code)


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
