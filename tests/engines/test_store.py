"""Tests of the model store: adding a model, killed at every step, and models that are not served."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import bentoml
import pytest
from bentoml._internal.configuration.containers import BentoMLContainer
from bentoml._internal.models import ModelStore

from engines.measured import records
from engines.published import files, manifest, store
from engines.published.manifest import ManifestError
from engines.published.store import PublishedModel
from engines.runtimes import cache
from tests.serving import ROOT

# For each number in a line of stdin, a fork adds the model in argv[1] to the store, and is killed by SIGKILL just
# before that change to a file. Prints the changes of a whole addition, and the fork's exit status.
KILLED = """
import os, shutil, signal, sys
from pathlib import Path
from engines.published import manifest, store
from tests.forks import line_of_a_fork

most = remaining = int(line_of_a_fork())
CHANGES = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree", "shutil.copyfile"}

def hook(event, arguments):
    global remaining
    if event not in CHANGES or (event == "open" and arguments[1] in ("r", "rb")):
        return
    if str(arguments[0]).startswith(os.environ["BENTOML_HOME"]):
        remaining -= 1
        if remaining == 0:
            os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(hook)
with store.staging() as stage:
    files = stage / "files"
    files.mkdir()
    source = Path(sys.argv[1])
    for name in manifest.load(source).files:
        shutil.copyfile(source / name, files / name)
    store.add(files, manifest.load(source), stage)
print(most - remaining, end=" ")
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return an empty BENTOML_HOME for one test."""
    (tmp_path / "models").mkdir()
    monkeypatch.setenv("BENTOML_HOME", str(tmp_path))
    BentoMLContainer.model_store.set(ModelStore(tmp_path / "models"))
    yield tmp_path
    BentoMLContainer.model_store.reset()


@contextmanager
def additions(home: Path, source: Path) -> Iterator[Callable[..., tuple[int, int]]]:
    """Yield a function that adds a model, killed at a change, and returns all changes, if whole, and status."""
    command = [sys.executable, "-c", KILLED, str(source)]
    environment = os.environ | {"BENTOML_HOME": str(home)}
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, text=True, bufsize=1, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdin
        assert process.stdout
        given, answers = process.stdin, process.stdout

        def add(killed_at: int = 1_000) -> tuple[int, int]:
            print(killed_at, file=given)
            *changes, status = map(int, answers.readline().split())
            return sum(changes), status

        yield add


def test_a_kill_at_any_change_leaves_the_old_or_the_new_state(lenet5: PublishedModel, home: Path) -> None:
    tag = lenet5.manifest.tag
    with additions(home, lenet5.folder) as add:
        for _ in range(2):  # the first addition creates one folder more
            changes, status = add()
            assert status == 0
            shutil.rmtree(home / "models" / "lenet5")
        assert changes >= 10
        seen = set()
        for step in range(1, changes + 1):
            assert add(step)[1] == -signal.SIGKILL
            published = store.published()
            assert [model.manifest.tag for model in published] in ([], [tag])
            for model in published:
                model.manifest.check_files(model.folder)
            assert len(bentoml.models.list()) == len(published)  # BentoML itself lists nothing broken
            seen.add(len(published))
            shutil.rmtree(home / "models" / "lenet5", ignore_errors=True)
        assert seen == {0, 1}
        assert add()[1] == 0  # although killed processes left files behind
    assert [model.manifest.tag for model in store.published()] == [tag]
    assert str(bentoml.models.get("lenet5").tag) == tag
    assert [path.name for path in (home / "convserve-staging").iterdir()] == ["lock"]


def test_a_broken_model_is_replaced(lenet5: PublishedModel, home: Path) -> None:
    shutil.copytree(lenet5.folder, home / "models" / "lenet5" / lenet5.folder.name)
    (home / "models" / "lenet5" / lenet5.folder.name / manifest.ONNX).write_bytes(b"")
    with additions(home, lenet5.folder) as add:
        assert add()[1] == 0
    (model,) = store.published()
    model.manifest.check_files(model.folder)


def copy(lenet5: PublishedModel, home: Path, version: str) -> Path:
    folder = home / "models" / "lenet5" / version
    shutil.copytree(lenet5.folder, folder)
    return folder


def test_models_of_others_and_broken_models_are_ignored(
    lenet5: PublishedModel, home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    version = lenet5.folder.name
    with bentoml.models.create("somebody:elses"):
        pass
    (home / "models" / "half" / "written").mkdir(parents=True)  # BentoML's own `create` leaves this when killed
    copy(lenet5, home, "renamed-00000000")
    (copy(lenet5, home, "not-json") / manifest.FILE).write_text("{")
    copy(lenet5, home, version)
    with caplog.at_level(logging.WARNING):
        assert [model.folder.name for model in store.published()] == [version]
    assert "the manifest belongs to another model" in caplog.text
    assert "not-json: manifest.json is not valid" in caplog.text


def test_a_missing_store_has_no_models(home: Path) -> None:
    (home / "models").rmdir()
    assert store.published() == []


@pytest.fixture
def umask() -> Iterator[None]:
    """Restore the umask after a test that changes it."""
    before = os.umask(0o022)
    yield
    os.umask(before)


@pytest.mark.usefixtures("umask")
@pytest.mark.parametrize(("mask", "folder", "file"), [(0o022, 0o755, 0o644), (0o027, 0o750, 0o640), (0, 0o777, 0o666)])
def test_what_is_published_has_the_modes_that_the_umask_leaves(
    lenet5: PublishedModel, home: Path, mask: int, folder: int, file: int
) -> None:
    os.umask(mask)
    with store.staging() as stage:
        shutil.copytree(lenet5.folder, stage / "files", ignore=shutil.ignore_patterns(manifest.FILE, "model.yaml"))
        for path in (stage / "files").iterdir():
            path.chmod(0o600)  # as some libraries, and earlier versions of this project, write them
        entry = store.add(stage / "files", lenet5.manifest, stage)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (entry, *entry.iterdir(), entry.parent / "latest")}
    assert modes.pop(entry.name) == folder
    assert modes.keys() >= {manifest.FILE, manifest.WEIGHTS, manifest.VERIFICATION, "model.yaml", "latest"}
    assert set(modes.values()) == {file}


@pytest.mark.usefixtures("umask")
def test_a_file_has_the_mode_that_the_umask_leaves_and_a_replaced_file_keeps_its_own(
    lenet5: PublishedModel, home: Path
) -> None:
    os.umask(0o027)
    path = home / "file"
    files.write(path, b"1")
    assert path.stat().st_mode & 0o777 == 0o640
    path.chmod(0o604)
    files.write(path, b"2")
    assert (path.read_bytes(), path.stat().st_mode & 0o777) == (b"2", 0o604)
    records.keep(lenet5, "openvino", "fp32")
    cache.keep(cache.path_of(["key"]), b"compiled", [home / "convserve-engines" / "other"])
    written = [*home.glob("convserve-records/*.json"), *home.glob("convserve-engines/*")]
    assert [path.stat().st_mode & 0o777 for path in written] == [0o640] * 3


def test_every_file_of_a_checkpoint_has_the_mode_that_the_umask_leaves(lenet5_checkpoint: Path, home: Path) -> None:
    (home / "new").touch()
    modes = {path.name: path.stat().st_mode & 0o777 for path in lenet5_checkpoint.iterdir()}
    assert any(name.endswith(".safetensors") for name in modes)
    assert set(modes.values()) == {(home / "new").stat().st_mode & 0o777}


# Looks at the store as another user than the one that published; a user who is not root has lost the right already.
STRANGER = """
import asyncio, json, logging, os
import httpx
from engines.published import store
from service.application import create_application
from service.context import make_context
from service.settings import Settings

logging.basicConfig(format="%(message)s")
store.root()
if os.getuid() == 0:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)

async def main():
    server = make_context(Settings(access_log=False))
    transport = httpx.ASGITransport(create_application(server))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        answer = (await client.get("/models/lenet5")).json()
        refused = (await client.post("/classify?model=lenet5", content=b"")).json()
        print(json.dumps([answer["models"], answer["unserved"], refused["detail"]]))

asyncio.run(main())
"""


@pytest.mark.parametrize("shut", ["lenet5/VERSION", "lenet5/VERSION/manifest.json", "lenet5", ""])
def test_another_user_is_told_what_cannot_be_read(lenet5: PublishedModel, shut: str) -> None:
    version = lenet5.folder.name
    with tempfile.TemporaryDirectory() as folder:  # not in pytest's own folder, which nobody else may enter
        home = Path(folder)
        home.chmod(0o755)
        shutil.copytree(lenet5.folder, home / "models" / "lenet5" / version)
        (home / "models" / "somebody" / "elses").mkdir(parents=True, mode=0)
        path = home / "models" / shut.replace("VERSION", version)
        path.chmod(0)
        environment = os.environ | {"BENTOML_HOME": folder}
        command = [sys.executable, "-c", STRANGER]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        path.chmod(0o755)
    assert done.returncode == 0, done.stderr
    served, unserved, refused = json.loads(done.stdout)
    name = {"": "the model store", "lenet5": "lenet5"}.get(shut, lenet5.manifest.tag)
    remedy = "cannot be read: Permission denied; `chmod -R a+rX` lets every user read"
    assert (served, unserved) == ([], [f"{name}: {remedy}"])
    assert f"lenet5 has no published weights for mnist5k; {name}: {remedy}" in refused
    log = [line for line in done.stderr.splitlines() if "not served" in line]
    assert f"not served: {str(path).removesuffix('/manifest.json')}: {remedy}" in log


def edit_manifest(folder: Path, **changes: object) -> None:
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
def test_the_error_of_an_invalid_manifest_names_the_field(
    lenet5: PublishedModel, tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(lenet5.folder, folder)
    edit_manifest(folder, **changes)
    with pytest.raises(ManifestError, match=message):
        manifest.load(folder)


def test_the_error_names_a_changed_or_missing_file(lenet5: PublishedModel, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(lenet5.folder, folder)
    (folder / manifest.VERIFICATION).write_bytes(b"other")
    with pytest.raises(ManifestError, match=r"verification.safetensors is not the file that was published"):
        manifest.load(folder).check_files(folder)
    (folder / manifest.VERIFICATION).unlink()
    with pytest.raises(ManifestError, match=r"verification.safetensors is missing"):
        manifest.load(folder).check_files(folder)
