"""Tests of a server whose models are in a bucket."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from threading import Event

import pytest
from fsspec.callbacks import Callback
from fsspec.implementations.local import LocalFileSystem

from engines.published import store
from engines.published.bucket import ModelBucket, downloads
from engines.published.files import locked
from engines.published.store import PublishedModel
from service.metrics import Metrics
from service.pulling import Puller
from service.settings import Settings
from tests.service.test_server import DIGIT
from tests.serving import serving


@pytest.mark.anyio
async def test_what_cannot_be_read_is_a_problem_until_it_can(
    lenet5: PublishedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    root = tmp_path / "home" / "models"
    root.mkdir(parents=True)
    monkeypatch.setattr(store, "root", lambda: root)
    url = f"file://{tmp_path}/bucket"
    metrics = Metrics()
    puller = Puller(Settings(models=url), metrics)
    for _ in range(2):
        await puller.pull(wait=True)
        assert puller.problem
        assert puller.problem.startswith(f"CONVSERVE_MODELS: {url}: FileNotFoundError")
    assert [record.getMessage() for record in caplog.records] == [puller.problem]  # once
    assert "convserve_bucket_failed 1.0" in metrics.text([], {}).decode()
    ModelBucket(url).push(lenet5)
    await puller.pull()
    assert puller.problem is None
    assert "convserve_bucket_failed 0.0" in metrics.text([], {}).decode()
    assert [model.manifest.tag for model in store.published()] == [lenet5.manifest.tag]


@pytest.mark.anyio
async def test_a_server_that_could_download_no_model_is_not_ready(
    lenet5: PublishedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "home" / "models"
    root.mkdir(parents=True)
    monkeypatch.setattr(store, "root", lambda: root)
    ModelBucket(f"file://{tmp_path}/bucket").push(lenet5)
    (tmp_path / "bucket" / lenet5.manifest.tag.replace(":", "/") / "model.onnx").write_bytes(b"half of it")
    puller = Puller(Settings(models=f"file://{tmp_path}/bucket"), Metrics())
    await puller.pull(wait=True)
    assert puller.problem
    assert f"model.onnx of {lenet5.manifest.tag} is not the file that was pushed" in puller.problem


@pytest.mark.anyio
@pytest.mark.parametrize("parts", [0, 1])
async def test_a_download_ends_with_its_server(
    parts: int, lenet5: PublishedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "home" / "models"
    root.mkdir(parents=True)
    monkeypatch.setattr(store, "root", lambda: root)
    ModelBucket(f"file://{tmp_path}/bucket").push(lenet5)
    begun, goes_on = Event(), Event()
    whole: list[str] = []

    def get_file(self: object, source: str, path: str, callback: Callback) -> None:
        begun.set()
        assert goes_on.wait(10)
        for _ in range(parts):
            callback.relative_update()
        whole.append(source)
        shutil.copyfile(source, path)

    monkeypatch.setattr(LocalFileSystem, "get_file", get_file)
    pulling = asyncio.create_task(Puller(Settings(models=f"file://{tmp_path}/bucket"), Metrics()).pull())
    assert await asyncio.to_thread(begun.wait, 10)
    pulling.cancel()
    await asyncio.wait([pulling])
    goes_on.set()
    with locked(downloads() / "lock"):  # the thread has ended
        assert (len(whole), store.published()) == (1 - parts, [])


@pytest.mark.anyio
async def test_without_a_bucket_nothing_is_pulled() -> None:
    puller = Puller(Settings(), Metrics())
    await puller.pull()
    await puller.follow()  # returns at once
    assert puller.problem is None


@pytest.mark.slow
def test_a_server_without_models_is_ready_once_it_has_those_of_the_bucket(
    lenet5: PublishedModel, tmp_path: Path
) -> None:
    url, home = f"file://{tmp_path}/bucket", tmp_path / "home"
    (home / "models").mkdir(parents=True)
    ModelBucket(url).push(lenet5)
    with serving(BENTOML_HOME=str(home), CONVSERVE_MODELS=url, CONVSERVE_RUNTIME="openvino") as (client, _):
        answer = client.post("/classify", params={"model": "lenet5"}, content=DIGIT)
        assert (answer.status_code, answer.json()["model"]) == (200, lenet5.manifest.tag)
