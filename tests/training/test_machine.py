"""Training on a machine that lacks git, space, memory, a right to write or shared memory: one line, nothing lost."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from engines.published import store
from models.zoo import ZOO
from tests.conftest import Run
from tests.serving import ROOT
from tests.training.small import ALONE, few, pictures, trainer
from training import checkpoint, jsonl
from training.__main__ import main
from training.checkpoint import Epoch
from training.data import DataSet
from training.errors import MachineError, RecipeError, TrainingError
from training.input import input_of
from training.machine import check_room, check_writable, machine_errors
from training.processes import Processes
from training.recipes import Recipe, quick
from training.train import TrainingOptions, TrainingRun, train

RESNET = ZOO["resnet20_cifar"]


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Let the system refuse to write more than `size` bytes into a file, as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def small_recipe(data: DataSet, **values: object) -> Recipe:
    """Return the quick recipe with batches of eight, for two epochs, and with other `values`."""
    return replace(quick(RESNET, data), **{"batch": 8, "epochs": 2, "lr": 0.01, **values})  # type: ignore[arg-type]


def test_without_git_the_commit_is_unknown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert checkpoint.versions()["convserve"] == "unknown"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["lenet5", "--out", "FILE"], "FILE: File exists; a file is where a folder must be; --out names another"),
        (["lenet5", "--out", "FILE/out"], "FILE/out: Not a directory; a file is where a folder must be; --out names"),
        (["lenet5", "--out", "/proc/out"], "/proc/out: No such file or directory; --out names another folder"),
        (["lenet5", "--results", "FILE/results.jsonl"], "FILE: File exists; a file is where a folder must be"),
        (["images", "mnist5k", "--out", "FILE/images"], "FILE/images.new"),
        (["plans", "lenet5", "--results", "FILE/plans.jsonl"], "FILE: File exists; a file is where a folder must be"),
    ],
)
def test_what_cannot_be_written_is_a_line_before_the_first_epoch(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    file = str(tmp_path / "file")
    with pytest.raises(SystemExit, match="error: " + message.replace("FILE", file)):
        main([word.replace("FILE", file) for word in words])
    assert "epoch" not in capsys.readouterr().out


def test_a_folder_is_made_for_what_is_written_there_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=r"error: .*nowhere"):
        main(["import", "resnet20_cifar", "--file", "nowhere"])
    assert not list(tmp_path.iterdir())
    check_writable(tmp_path)
    assert tmp_path.exists()


def test_imported_weights_are_named_after_their_data_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(RESNET.build(10).state_dict(), "weights.pth")
    main(["import", "resnet20_cifar", "--file", "weights.pth"])
    assert capsys.readouterr().out.endswith("now: python -m training publish checkpoints/resnet20_cifar-cifar10\n")
    assert (tmp_path / "checkpoints" / "resnet20_cifar-cifar10" / checkpoint.FILE).exists()


def test_a_full_disk_leaves_the_last_whole_checkpoint_and_resume_goes_on(digits: DataSet, tmp_path: Path) -> None:
    data = few(digits, 40)
    recipe = small_recipe(data)
    expected = train(TrainingRun(RESNET, recipe, 1, tmp_path / "whole"), data, ALONE)
    run = TrainingRun(RESNET, recipe, 1, tmp_path / "full")
    with largest_file(200_000), pytest.raises(MachineError, match=r"/full: File too large; .*limits the size of a fil"):
        train(run, data, ALONE)
    assert not list(run.out.iterdir())
    with pytest.MonkeyPatch.context() as patch, largest_file(2**40):
        limit = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        lowered = (200_000, limit)
        patch.setattr("training.train.describe", lambda *_: resource.setrlimit(resource.RLIMIT_FSIZE, lowered))
        with pytest.raises(MachineError, match="--resume goes on from the last whole epoch"):
            train(run, data, ALONE)
    saved = checkpoint.load(run.out)
    assert len(saved.epochs) == 1
    assert saved.optimizer
    assert {path.name for path in run.out.glob("*.safetensors")} == {saved.weights.file, saved.optimizer.file}
    assert train(run, data, ALONE, TrainingOptions(resume=True)).weights.sha256 == expected.weights.sha256


def test_curves_that_cannot_be_written_are_written_by_resume(digits: DataSet, tmp_path: Path) -> None:
    data = few(digits, 40)
    run = TrainingRun(RESNET, small_recipe(data, epochs=1), 1, tmp_path)
    (tmp_path / "curves.png").mkdir()
    with pytest.raises(MachineError, match=r"curves.png: Is a directory; the training is whole; --resume writes"):
        train(run, data, ALONE)
    (tmp_path / "curves.png").rmdir()
    train(run, data, ALONE, TrainingOptions(resume=True))
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("optimizer", ["sgd", "nesterov", "adamw", "rmsprop"])
def test_the_room_of_checkpoints_is_what_they_take(optimizer: str, digits: DataSet, tmp_path: Path) -> None:
    data = few(digits, 40)
    tried = trainer("resnet20_cifar", small_recipe(data, optimizer=optimizer), data)
    tried.step(next(tried.data.batches.epoch(1)))
    fields = dict.fromkeys(("architecture", "dataset", "data", "split"), "")
    unnamed = {"labels": (), "epochs": (), "input": input_of(RESNET, tried.recipe, data)}
    checkpoint.save(tmp_path, fields | unnamed, tried.net, (tried.optimizer, tried.scaler))
    taken = sum(path.stat().st_size for path in tmp_path.glob("*.safetensors"))
    assert checkpoint.room(tried.net, replace(tried.recipe, epochs=9)) == pytest.approx(2 * taken, rel=0.1)
    with pytest.raises(MachineError, match=r"checkpoints need 1,000,000,000,000.0 MB, .* MB are free"):
        check_room(tmp_path, 10**18)


def test_a_line_that_cannot_be_written_leaves_the_others_whole(tmp_path: Path) -> None:
    path, epoch = (
        tmp_path / "epochs.jsonl",
        Epoch(epoch=1, loss=1, top1=1, lr=1, images_per_s=1, input_share=0, seconds=1),
    )
    jsonl.append(path, epoch)
    before = path.read_bytes()
    with largest_file(len(before) + 9), pytest.raises(MachineError, match=r"epochs.jsonl: File too large"):
        jsonl.append(path, epoch)
    assert path.read_bytes() == before
    jsonl.append(path, epoch)
    assert jsonl.read(path, Epoch) == [epoch, epoch]
    path.write_bytes(before + b'{"epoch": 2, "lo\xff')
    with pytest.raises(TrainingError, match=r"epochs.jsonl, line 2: no Epoch: Invalid JSON"):
        jsonl.read(path, Epoch)


def test_a_full_store_is_a_line_and_keeps_nothing_half(lenet5_checkpoint: Path, tmp_path: Path) -> None:
    """The copy has other weights than any published model."""
    before = store.survey()
    folder = shutil.copytree(lenet5_checkpoint, tmp_path / "copy")
    saved = checkpoint.load(folder)
    net = checkpoint.network(folder, saved).net
    torch.nn.init.ones_(next(net.parameters()))
    kept = saved.model_dump(exclude={"versions", "weights", "optimizer"})
    checkpoint.save(folder, kept, net, None)
    with largest_file(100_000), pytest.raises(SystemExit, match=r"File too large; .*; BENTOML_HOME names another"):
        main(["publish", str(folder)])
    assert store.survey() == before
    assert not (store.root().parent / "convserve-staging" / "work").exists()


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        ("picture.bmp3", r"picture.bmp3: a picture ends in one of .*png.*; --picture names another file"),
        ("file/picture.png", r"file: File exists; a file is where a folder must be; --picture names another file"),
    ],
)
def test_a_picture_that_cannot_be_written_is_a_line_before_the_evaluation(
    picture: str, message: str, lenet5_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.delattr("training.report.held_out_logits")
    with pytest.raises(SystemExit, match=message):
        main(["evaluate", str(lenet5_checkpoint), "--picture", str(tmp_path / picture)])


def test_a_store_that_cannot_be_is_a_line(run: Run, lenet5_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = run("training", "publish", lenet5_checkpoint, check=False, BENTOML_HOME=str(tmp_path / "file"))
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: {tmp_path}/file: ")
    assert "BENTOML_HOME names another folder" in line


# Decodes twelve pictures in worker processes with 64 kB of shared memory, a third of one batch; then with none.
WITHOUT_SHARED_MEMORY = """
import subprocess, sys, time, torch
from engines.published.preprocess import Preprocess
from training import batches
from training.data import load
from training.input import Input

images = load(f"folder:{sys.argv[1]}").train
network_input = Input(preprocess=Preprocess(mode="RGB", resize_edge=128, crop=128), mean=(0,) * 3, std=(1,) * 3)
indices = torch.arange(len(images)).split(4)
expected = list(batches.Source(images, network_input).batches(indices, 0))
batches.MEMORY = 0
for workers in (True, False):
    if not workers:
        while subprocess.run(["mount", "-o", "remount,ro", "/dev/shm"]).returncode:
            time.sleep(0.1)  # the last worker process has not ended yet
        batches.can_share.cache_clear()
    source = batches.Source(images, network_input)
    assert bool(source.workers) == workers
    assert all(map(torch.equal, source.batches(indices, 0), expected))
"""


def test_shared_memory_is_not_needed(tmp_path: Path) -> None:
    pictures(tmp_path / "photos")
    namespace = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    mount = "mount -t tmpfs -o size=64k tmpfs /dev/shm && "
    if subprocess.run([*namespace, mount + "true"], check=False, capture_output=True).returncode:
        pytest.skip("this user may not mount a folder in a namespace")
    command = [*namespace, mount + 'exec "$@"', "sh", sys.executable, "-c", WITHOUT_SHARED_MEMORY]
    done = subprocess.run([*command, str(tmp_path / "photos")], cwd=ROOT, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    warned = "warning: /dev/shm cannot be used: Read-only file system; pictures are decoded in the process that trains"
    assert done.stderr.count(warned) == 1


class Killer(Dataset[int]):
    """Data set that ends its worker process, as the system does when memory is short."""

    def __getitem__(self, index: int) -> int:
        os.kill(os.getpid(), signal.SIGKILL)
        return index


@pytest.mark.parametrize(
    ("failing", "message"),
    [
        (lambda: torch.empty(2**58), "memory is not enough: a smaller --set batch="),
        (lambda: np.empty(2**58), "memory is not enough: a smaller --set batch="),
        (lambda: next(iter(DataLoader(Killer(), batch_sampler=[[0]], num_workers=1))), "that decodes pictures ended"),
        (lambda: Path("/proc/none/file").read_bytes(), "^/proc/none/file: No such file or directory$"),
    ],
)
def test_an_error_of_the_machine_is_a_line(failing: object, message: str) -> None:
    assert callable(failing)
    with pytest.raises(MachineError, match=message), machine_errors():
        failing()


def test_batch_norm_needs_two_values(digits: DataSet, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"batch: resnet18 has batch norm.*--set batch=2 or more.*--set edge="):
        main(["resnet18", "--set", "edge=32", "--set", "batch=1", "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()
    data = few(digits, 4)
    for card in (ZOO["lenet5"], RESNET):  # no batch norm; pictures of more than one value in every layer
        recipe = replace(quick(card, data), batch=1, epochs=1, edge=32)
        assert train(TrainingRun(card, recipe, 0, tmp_path / card.name), data, ALONE).done


def test_every_process_needs_an_image(digits: DataSet, tmp_path: Path) -> None:
    data, eight = few(digits, 4), Processes(0, 8, torch.device("cpu"))
    with pytest.raises(RecipeError, match="a batch of 4 cannot be shared by 8 processes"):
        train(TrainingRun(RESNET, small_recipe(data), 0, tmp_path), data, eight)
