"""A checkpoint survives a kill at any write."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.serving import ROOT
from training import checkpoint

# For each line of stdin, a number and a folder, a fork saves three epochs of a tiny net into the folder, killed by -9
# just before the n-th change to a file there. Prints the changes of a whole run, and the fork's exit status.
KILLED = """
import os, signal, sys
from pathlib import Path
from tests.forks import line_of_a_fork
from torch import nn, optim
from torch.amp import GradScaler
from training import checkpoint
from training.recipes import PAPERS
from training.input import Input
from engines.published.preprocess import Preprocess

net = nn.Linear(2, 2)
network_input = Input(preprocess=Preprocess(mode="L", resize_edge=2, crop=2), mean=(0,), std=(1,))
optimizer = optim.AdamW(net.parameters())
net(net.weight).sum().backward()
optimizer.step()

number, name = line_of_a_fork().split()
left, folder = int(number), Path(name)

def change():
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)

def hook(event, arguments):
    if event in ("open", "os.rename", "os.remove") and str(arguments[0]).startswith(str(folder)):
        if event != "open" or arguments[1] not in ("r", "rb"):
            change()

save_file = checkpoint.save_file
checkpoint.save_file = lambda *arguments: (change(), save_file(*arguments))  # it writes from Rust, unseen by the hook
sys.addaudithook(hook)
epochs = []
for epoch in (1, 2, 3):
    epochs.append(checkpoint.Epoch(epoch=epoch, loss=1, top1=1, lr=1, images_per_s=1, input_share=0, seconds=1))
    run = dict(architecture="tiny", dataset="mnist5k", data="mnist5k", split="", labels=("0", "1"), seed=0)
    run |= dict(input=network_input, recipe=PAPERS["lenet5"])
    net.weight.data.fill_(epoch)
    checkpoint.save(folder, run | {"epochs": epochs}, net, (optimizer, GradScaler("cpu", enabled=False)))
print(int(number) - left, end=" ")
"""
Save = Callable[..., tuple[int, int]]


@pytest.fixture(scope="module")
def save() -> Iterator[Save]:
    """Yield a function that saves into a folder, killed at a change, and returns all changes, if whole, and status."""
    command = [sys.executable, "-c", KILLED]
    with subprocess.Popen(
        command, cwd=ROOT, text=True, bufsize=1, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdin
        assert process.stdout
        given, answers = process.stdin, process.stdout

        def save(folder: Path, killed_at: int = 1_000) -> tuple[int, int]:
            print(killed_at, folder, file=given)
            *changes, status = map(int, answers.readline().split())
            return sum(changes), status

        yield save


def test_a_kill_at_any_write_leaves_the_last_whole_checkpoint(save: Save, tmp_path: Path) -> None:
    changes, status = save(tmp_path / "whole")
    assert status == 0
    assert changes >= 12
    seen = []
    for step in range(changes // 3 + 1, 2 * changes // 3 + 2):  # the second epoch: there is one to lose
        folder = tmp_path / str(step)
        assert save(folder, killed_at=step)[1] == -signal.SIGKILL
        seen.append(len(checkpoint.load(folder).epochs))
    assert seen == sorted(seen)
    assert set(seen) == {1, 2}


def test_other_files_of_the_folder_are_left_alone(save: Save, tmp_path: Path) -> None:
    mine = tmp_path / "mine.safetensors"
    mine.write_bytes(b"precious")
    assert save(tmp_path)[1] == 0
    assert mine.read_bytes() == b"precious"
    assert len(list(tmp_path.glob("weights-*.safetensors"))) == 1
