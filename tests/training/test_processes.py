"""Training in two processes, as torchrun starts them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import Run
from tests.serving import ROOT
from tests.training.small import arguments, pictures
from training import checkpoint
from training.results import read


@pytest.mark.parametrize(
    "more", [(), pytest.param(("--set", "accumulate=2", "--set", "ema=0.3"), marks=pytest.mark.slow)]
)
def test_two_processes_are_as_one_with_the_same_batch(more: tuple[str, ...], run: Run, tmp_path: Path) -> None:
    """The network has neither dropout nor batch norm, whose statistics differ between processes."""
    run(*arguments(tmp_path / "1"), "--set", "batch=500", *more)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m"]
    done = subprocess.run(
        [*command, *arguments(tmp_path / "2"), "--set", "batch=500", *more],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("epoch 2/2") == 1
    one, two = (checkpoint.load(tmp_path / str(processes)) for processes in (1, 2))
    assert [epoch.loss for epoch in two.epochs] == pytest.approx([epoch.loss for epoch in one.epochs], rel=1e-5)
    assert [epoch.top1 for epoch in two.epochs] == pytest.approx([epoch.top1 for epoch in one.epochs], abs=0.002)


@pytest.mark.slow
def test_two_processes_drop_blocks_each_its_own_and_go_on(tmp_path: Path) -> None:
    pictures(tmp_path / "photos")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "training"]
    command += ["resnet110_sd", "--recipe", "quick", "--data", f"folder:{tmp_path / 'photos'}", "--epochs", "2"]
    command += ["--set", "edge=8", "--set", "batch=4", "--out", str(tmp_path / "out"), "--resume"]
    command += ["--results", str(tmp_path / "results.jsonl")]
    for said in ("epoch 2/2", "results.jsonl has resnet110_sd on photos, seed 0"):
        done = subprocess.run(
            command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.count(said) == 1
    assert len(read(tmp_path / "results.jsonl")) == 1
