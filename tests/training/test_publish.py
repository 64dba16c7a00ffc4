"""Publishing: entries hold the trained weights, and are complete or absent."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from safetensors.numpy import load_file

from engines.published import manifest, store
from engines.published.manifest import File
from engines.published.store import PublishedModel
from engines.runtimes.registry import EngineSpec, make_engine
from models.complexity import complexity
from models.zoo import ZOO
from tests.conftest import Run
from tests.serving import ROOT
from training import checkpoint
from training.__main__ import main
from training.data import DataSet


def test_the_manifest_describes_the_published_checkpoint(lenet5: PublishedModel, lenet5_checkpoint: Path) -> None:
    saved, published = checkpoint.load(lenet5_checkpoint), lenet5.manifest
    assert published.tag == f"lenet5:mnist5k-{saved.weights.sha256[:8]}"
    assert published.labels == tuple("0123456789")
    assert published.accuracy["fp32"].images == 1000
    assert published.accuracy["fp32"].top1 == saved.epochs[-1].top1
    assert (published.complexity.params, published.complexity.macs) == (60_000, 325_680)
    assert len(published.complexity.layers) == len(complexity(ZOO["lenet5"]).layers)
    assert published.provenance["recipe"]["loss"] == "map"
    published.check_files(lenet5.folder)


def test_the_graph_takes_pixels_of_any_batch(lenet5: PublishedModel) -> None:
    graph = onnx.load(lenet5.folder / manifest.ONNX).graph
    onnx.checker.check_model(lenet5.folder / manifest.ONNX, full_check=True)
    (pixels,), (logits,) = graph.input, graph.output
    assert (pixels.name, logits.name) == ("pixels", "logits")
    assert pixels.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    batch, *shape = pixels.type.tensor_type.shape.dim
    assert batch.dim_param
    assert [dimension.dim_value for dimension in shape] == [32, 32, 1]


def test_the_verification_set_is_held_out_and_of_every_class(lenet5: PublishedModel, digits: DataSet) -> None:
    verification = load_file(lenet5.folder / manifest.VERIFICATION)
    held_out = {pixels.tobytes() for pixels in digits.held_out.pixels(lenet5.manifest.preprocess)}
    assert len(verification["pixels"]) == 256
    assert {pixels.tobytes() for pixels in verification["pixels"]} <= held_out
    assert set(verification["targets"].tolist()) == set(range(10))


def test_publishing_again_changes_nothing(run: Run, lenet5: PublishedModel, lenet5_checkpoint: Path) -> None:
    assert "is published already" in run("training", "publish", lenet5_checkpoint, "--precisions", "fp32").stdout
    assert manifest.load(lenet5.folder) == lenet5.manifest


@pytest.fixture
def copied(lenet5_everywhere: PublishedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PublishedModel:
    """Return lenet5 in every precision in the only store of this process, which a test may change."""
    monkeypatch.setattr(store, "root", lambda: tmp_path / "models")
    folder = store.folder_of(lenet5_everywhere.manifest.tag)
    shutil.copytree(lenet5_everywhere.folder, folder)
    return PublishedModel(folder, lenet5_everywhere.manifest)


def test_precisions_are_added_to_the_same_graph(lenet5: PublishedModel, lenet5_everywhere: PublishedModel) -> None:
    before, after = lenet5.manifest, lenet5_everywhere.manifest
    assert after.files.keys() - before.files.keys() == {manifest.GRAPHS["fp16"], manifest.INT8}
    assert {name: after.files[name] for name in before.files} == before.files
    assert after.accuracy["fp32"] == before.accuracy["fp32"]


def test_calibrating_again_replaces_int8_alone(
    copied: PublishedModel, lenet5_checkpoint: Path, digits: DataSet, tmp_path: Path
) -> None:
    dark = tmp_path / "dark"
    for number, label in enumerate(("0", "1")):
        (dark / label).mkdir(parents=True)
        for index in range(12):
            picture = digits.train.pictures[24 * number + index]
            picture.point(lambda value: value // 2).save(dark / label / f"{index}.png")
    main(["publish", str(lenet5_checkpoint), "--precisions", "int8", "--calibrate", f"folder:{dark}"])
    after, before = manifest.load(copied.folder), copied.manifest
    changed = {name for name in before.files if after.files[name] != before.files[name]}
    assert changed == {manifest.INT8}
    assert after.calibration
    assert after.calibration.images < 24
    after.check_files(copied.folder)


def test_a_model_of_an_older_version_keeps_the_graph_that_holds_its_weights(
    copied: PublishedModel, lenet5_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    graph = copied.folder / manifest.ONNX
    onnx.save(onnx.load(graph), graph)  # with the weights inside
    (copied.folder / manifest.GRAPHS["fp16"]).unlink()
    old = File(sha256=manifest.sha256(graph), bytes=graph.stat().st_size)
    others = {name: file for name, file in copied.manifest.files.items() if name != manifest.GRAPHS["fp16"]}
    before = copied.manifest.model_copy(update={"files": others | {manifest.ONNX: old}})
    (copied.folder / manifest.FILE).write_text(before.model_dump_json())
    main(["publish", str(lenet5_checkpoint)])
    assert capsys.readouterr().out.startswith("keeping fp32, int8\n")
    after = PublishedModel(copied.folder, manifest.load(copied.folder))
    assert after.manifest.files == before.files | {
        manifest.GRAPHS["fp16"]: copied.manifest.files[manifest.GRAPHS["fp16"]]
    }
    verification = load_file(copied.folder / manifest.VERIFICATION)
    logits = make_engine(after, EngineSpec("onnxruntime", "fp32")).infer(verification["pixels"])
    assert np.abs(logits - verification["logits"]).max() <= 1e-3 * np.abs(verification["logits"]).max()


def test_the_weights_are_stored_once(lenet5: PublishedModel) -> None:
    graph, weights = lenet5.manifest.files[manifest.ONNX], lenet5.manifest.files[manifest.WEIGHTS]
    assert graph.bytes < 0.1 * weights.bytes
    assert lenet5.manifest.graph_bytes("fp32") == lenet5.manifest.graph_bytes("bf16") == weights.bytes
    assert lenet5.manifest.graph_bytes("int8") == weights.bytes  # there is none, and torch would read the weights
    model = onnx.load(lenet5.folder / manifest.ONNX, load_external_data=False)
    assert {entry.key: entry.value for entry in model.metadata_props}["weights_sha256"] == weights.sha256
    large = [tensor for tensor in model.graph.initializer if np.prod(tensor.dims) >= 256]
    assert len(large) >= 5
    for tensor in large:
        assert tensor.external_data[0].value == manifest.WEIGHTS


def test_an_unfinished_checkpoint_is_not_published(run: Run, lenet5_checkpoint: Path, tmp_path: Path) -> None:
    for path in lenet5_checkpoint.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    content = json.loads((tmp_path / checkpoint.FILE).read_text())
    content["epochs"].pop()
    (tmp_path / checkpoint.FILE).write_text(json.dumps(content))
    done = run("training", "publish", tmp_path, check=False)
    assert done.returncode == 1
    assert "has 14 of 15 epochs: train with --resume" in done.stderr


# Runs a command, killed by -9 just before its argv[1]th change to a file of BENTOML_HOME.
KILLED = """
import os, runpy, signal, sys
left = int(sys.argv.pop(1))

def hook(event, arguments):
    global left
    writes = event == "open" and arguments[1] not in ("r", "rb", None)
    if (writes or event in {"os.mkdir", "os.rename", "os.remove", "os.rmdir"}) and str(arguments[0]).startswith(
        os.environ["BENTOML_HOME"]
    ):
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(hook)
total = left
runpy.run_module("training", run_name="__main__", alter_sys=True)
print(total - left)
"""


def publish(checkpoint: Path, home: Path, killed_at: int) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", KILLED, str(killed_at), "publish", str(checkpoint)]
    environment = os.environ | {"BENTOML_HOME": str(home)}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_a_kill_at_ten_points_of_the_whole_command(lenet5_checkpoint: Path, tmp_path: Path) -> None:
    changes = int(publish(lenet5_checkpoint, tmp_path / "whole", killed_at=1_000).stdout.splitlines()[-1])
    assert changes >= 10
    found = []
    for point in range(1, 11):
        home = tmp_path / str(point)
        killed = publish(lenet5_checkpoint, home, killed_at=changes * point // 10)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        entries = list(home.glob(f"models/*/*/{manifest.FILE}"))
        for path in entries:
            manifest.load(path.parent).check_files(path.parent)
        found.append(len(entries))
    assert set(found) == {0, 1}
    again = publish(lenet5_checkpoint, tmp_path / "1", killed_at=1_000)
    assert "published lenet5:mnist5k-" in again.stdout
    (path,) = (tmp_path / "1").glob(f"models/*/*/{manifest.FILE}")
    manifest.load(path.parent).check_files(path.parent)
