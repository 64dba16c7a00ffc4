"""A checkpoint survives a kill at any write."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

from tests.serving import ROOT
from training import checkpoint

# Saves three epochs of a tiny net into argv[1]; killed by -9 just before the argv[2]th change to a file of it.
KILLED = """
import os, signal, sys
from pathlib import Path
from torch import nn, optim
from torch.amp import GradScaler
from training import checkpoint
from training.recipes import PAPERS
from training.input import Input
from engines.published.preprocess import Preprocess

folder, left = Path(sys.argv[1]), int(sys.argv[2])
net = nn.Linear(2, 2)
network_input = Input(preprocess=Preprocess(mode="L", resize_edge=2, crop=2), mean=(0,), std=(1,))
optimizer = optim.AdamW(net.parameters())
net(net.weight).sum().backward()
optimizer.step()

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
for number in (1, 2, 3):
    epochs.append(checkpoint.Epoch(epoch=number, loss=1, top1=1, lr=1, images_per_s=1, input_share=0, seconds=1))
    run = dict(architecture="tiny", dataset="mnist5k", data="mnist5k", split="", labels=("0", "1"), seed=0)
    run |= dict(input=network_input, recipe=PAPERS["lenet5"])
    net.weight.data.fill_(number)
    checkpoint.save(folder, run | {"epochs": epochs}, net, (optimizer, GradScaler("cpu", enabled=False)))
print(int(sys.argv[2]) - left)
"""


def save(folder: Path, killed_at: int) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", KILLED, str(folder), str(killed_at)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_a_kill_at_any_write_leaves_the_last_whole_checkpoint(tmp_path: Path) -> None:
    whole = save(tmp_path / "whole", killed_at=1_000)
    assert whole.returncode == 0, whole.stderr
    changes = int(whole.stdout)
    assert changes >= 12
    seen = []
    for step in range(changes // 3 + 1, 2 * changes // 3 + 2):  # the second epoch: there is one to lose
        folder = tmp_path / str(step)
        assert save(folder, killed_at=step).returncode == -signal.SIGKILL
        seen.append(len(checkpoint.load(folder).epochs))
    assert seen == sorted(seen)
    assert set(seen) == {1, 2}


def test_other_files_of_the_folder_are_left_alone(tmp_path: Path) -> None:
    mine = tmp_path / "mine.safetensors"
    mine.write_bytes(b"precious")
    assert save(tmp_path, killed_at=1_000).returncode == 0
    assert mine.read_bytes() == b"precious"
    assert len(list(tmp_path.glob("weights-*.safetensors"))) == 1
