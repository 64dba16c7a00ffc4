"""Tests of adding to the model store, killed at every step, and of models that are not served."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import bentoml
import pytest
from bentoml._internal.configuration.containers import BentoMLContainer
from bentoml._internal.models import ModelStore

from engines.published import manifest, store
from engines.published.manifest import ManifestError
from engines.published.store import PublishedModel
from tests.serving import ROOT

# Adds the model in argv[1] to the store, and is killed by SIGKILL just before its argv[2]th change to a file.
KILLED = """
import os, shutil, signal, sys
from pathlib import Path
from engines.published import manifest, store

left = int(sys.argv[2])
CHANGES = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree", "shutil.copyfile"}

def hook(event, arguments):
    global left
    if event not in CHANGES or (event == "open" and arguments[1] in ("r", "rb")):
        return
    if str(arguments[0]).startswith(os.environ["BENTOML_HOME"]):
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(hook)
with store.staging() as stage:
    files = stage / "files"
    files.mkdir()
    source = Path(sys.argv[1])
    for name in manifest.load(source).files:
        shutil.copyfile(source / name, files / name)
    store.add(files, manifest.load(source), stage)
print(int(sys.argv[2]) - left)
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return an empty BENTOML_HOME for one test."""
    (tmp_path / "models").mkdir()
    monkeypatch.setenv("BENTOML_HOME", str(tmp_path))
    BentoMLContainer.model_store.set(ModelStore(tmp_path / "models"))
    yield tmp_path
    BentoMLContainer.model_store.reset()


def add(home: Path, source: Path, killed_at: int) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", KILLED, str(source), str(killed_at)]
    environment = os.environ | {"BENTOML_HOME": str(home)}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def test_a_kill_at_any_change_leaves_the_old_state_or_the_new(lenet5: PublishedModel, home: Path) -> None:
    tag = lenet5.manifest.tag
    for _ in range(2):  # the first addition creates one folder more
        whole = add(home, lenet5.folder, killed_at=1_000)
        assert whole.returncode == 0, whole.stderr
        shutil.rmtree(home / "models" / "lenet5")
    changes = int(whole.stdout)
    assert changes >= 10
    seen = set()
    for step in range(1, changes + 1):
        assert add(home, lenet5.folder, killed_at=step).returncode == -signal.SIGKILL
        published = store.published()
        assert [model.manifest.tag for model in published] in ([], [tag])
        for model in published:
            model.manifest.check_files(model.folder)
        assert len(bentoml.models.list()) == len(published)  # BentoML itself lists nothing broken
        seen.add(len(published))
        shutil.rmtree(home / "models" / "lenet5", ignore_errors=True)
    assert seen == {0, 1}
    assert add(home, lenet5.folder, killed_at=1_000).returncode == 0  # in spite of left-over files
    assert [model.manifest.tag for model in store.published()] == [tag]
    assert str(bentoml.models.get("lenet5").tag) == tag
    assert [path.name for path in (home / "convserve-staging").iterdir()] == ["lock"]


def test_a_broken_entry_is_replaced(lenet5: PublishedModel, home: Path) -> None:
    shutil.copytree(lenet5.folder, home / "models" / "lenet5" / lenet5.folder.name)
    (home / "models" / "lenet5" / lenet5.folder.name / manifest.ONNX).write_bytes(b"")
    assert add(home, lenet5.folder, killed_at=1_000).returncode == 0
    (model,) = store.published()
    model.manifest.check_files(model.folder)


def copy(lenet5: PublishedModel, home: Path, version: str) -> Path:
    folder = home / "models" / "lenet5" / version
    shutil.copytree(lenet5.folder, folder)
    return folder


def test_what_is_not_ours_or_not_whole_is_passed_over(
    lenet5: PublishedModel, home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    version = lenet5.folder.name
    with bentoml.models.create("somebody:elses"):
        pass
    (home / "models" / "half" / "written").mkdir(parents=True)  # as BentoML's own create leaves it when killed
    copy(lenet5, home, "renamed-00000000")
    (copy(lenet5, home, "not-json") / manifest.FILE).write_text("{")
    copy(lenet5, home, version)
    with caplog.at_level(logging.WARNING):
        assert [model.folder.name for model in store.published()] == [version]
    assert "the manifest is of another model" in caplog.text
    assert "not-json: manifest.json is not valid" in caplog.text


def test_a_store_that_does_not_exist_is_empty(home: Path) -> None:
    (home / "models").rmdir()
    assert store.published() == []


def edited(folder: Path, **changes: object) -> None:
    content = json.loads((folder / manifest.FILE).read_text())
    (folder / manifest.FILE).write_text(json.dumps(content | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 1}, "format: "),
        ({"labels": 3}, "labels: "),
        ({"unheard_of": 1}, "unheard_of: "),
        ({"architecture": "a:b"}, "architecture: "),
        ({"dataset": "../x"}, "dataset: "),
        ({"files": {}}, "it lists no checkpoint.safetensors"),
    ],
)
def test_an_invalid_manifest_says_what_is_wrong(
    lenet5: PublishedModel, tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    folder = tmp_path / "entry"
    shutil.copytree(lenet5.folder, folder)
    edited(folder, **changes)
    with pytest.raises(ManifestError, match=message):
        manifest.load(folder)


def test_a_file_that_changed_or_went_is_named(lenet5: PublishedModel, tmp_path: Path) -> None:
    folder = tmp_path / "entry"
    shutil.copytree(lenet5.folder, folder)
    (folder / manifest.VERIFICATION).write_bytes(b"other")
    with pytest.raises(ManifestError, match=r"verification.safetensors is not the file that was published"):
        manifest.load(folder).check_files(folder)
    (folder / manifest.VERIFICATION).unlink()
    with pytest.raises(ManifestError, match=r"verification.safetensors is missing"):
        manifest.load(folder).check_files(folder)
