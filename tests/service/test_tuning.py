"""Tests of self-tuning: engines are verified and timed while the server has no request, and the best serves."""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from bentoml._internal.configuration.containers import BentoMLContainer
from bentoml._internal.models import ModelStore

from engines.measured import records, tune
from engines.measured.select_engine import choose
from engines.published import files
from engines.published.store import PublishedModel, published
from engines.runtimes.registry import EngineSpec
from service.context import ServerContext, make_context
from service.device import LocalDevice
from service.settings import Settings
from service.tuning import Tuner
from tests.service.test_lifecycle import classify, worker_of
from tests.serving import serving

Until = Callable[[], object]


@pytest.fixture
def home(lenet5: PublishedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a BENTOML_HOME with lenet5 in fp32 and no records, which also is this process's store."""
    shutil.copytree(lenet5.folder, tmp_path / "models" / "lenet5" / lenet5.folder.name)
    monkeypatch.setenv("BENTOML_HOME", str(tmp_path))
    store = ModelStore(tmp_path / "models")
    monkeypatch.setattr(BentoMLContainer, "model_store", type(BentoMLContainer.model_store)(lambda: store))
    return tmp_path


async def until(condition: Until, seconds: float = 60) -> None:
    """Wait until a condition holds; fail after `seconds`."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.02)


async def started() -> tuple[ServerContext, Tuner]:
    """Return a server in this process, restricted to fp32, with its models loaded, and its tuner."""
    server = make_context(Settings(precision="fp32", scan_s=0.1))
    await server.catalog.load_all()
    assert isinstance(server.device, LocalDevice)
    return server, server.device.tuner


def tuning(server: ServerContext) -> tuple[list[str], dict[str, str]]:
    """Return the engines of lenet5 that are left, and the reasons of those that failed."""
    (model,) = server.catalog.published("lenet5")
    state = server.device.tuning(model)
    return state.left, state.failed


def trials() -> list[psutil.Process]:
    """Return the processes of trials that this process has started."""
    found = []
    for child in psutil.Process().children():
        with suppress(psutil.NoSuchProcess):
            if "engines.measured.tune" in child.cmdline():
                found.append(child)
    return found


@pytest.mark.anyio
async def test_a_trial_yields_to_requests_and_its_records_are_not_made_again(home: Path) -> None:
    server, tuner = await started()
    assert tuning(server) == (["openvino fp32"], {})
    running = asyncio.create_task(tuner.run())
    with files.lock_if_free(records.folder() / "tuning.lock") as free:  # as another server of this store
        assert free
        await asyncio.sleep(0.3)
        assert not trials()
    await until(trials)
    (child,) = trials()
    with tuner.paused():
        await until(lambda: child.status() == psutil.STATUS_STOPPED)
        with tuner.paused():
            pass
        assert child.status() == psutil.STATUS_STOPPED
    await until(lambda: not tuning(server)[0])
    running.cancel()
    (model,) = server.catalog.published("lenet5")
    (record,) = (record for record in model.records if record.precision == "fp32")
    assert record.complete
    assert record.fidelity is not None
    assert record.fidelity.problem is None
    assert {speed.batch for speed in record.speeds} == {1, 8, 32}
    assert model.chosen.spec == choose(model.records, "auto", "fp32")
    text = server.metrics.text([], tuner.left()).decode()
    assert f'convserve_tuning_trials_total{{model="{model.manifest.tag}",result="faithful"}} 1.0' in text
    assert tuning((await started())[0]) == ([], {})


@pytest.mark.anyio
async def test_an_engine_that_cannot_be_tried_is_reported_and_left(home: Path) -> None:
    server, tuner = await started()
    (model,) = server.catalog.published("lenet5")
    (model.published.folder / "verification.safetensors").write_bytes(b"")
    running = asyncio.create_task(tuner.run())
    await until(lambda: not tuning(server)[0])
    running.cancel()
    assert "verification.safetensors is not the file that was published" in tuning(server)[1]["openvino fp32"]
    assert model.chosen.queue


def test_an_engine_that_is_not_faithful_is_not_timed(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "AGREEING", 1.1)
    (model,) = published()
    problem = tune.tune(model, EngineSpec("openvino", "fp32"), 8)
    assert problem is not None
    assert problem.startswith("it agrees with torch on 100.0%")
    record = records.find(model, "openvino", "fp32")
    assert record is not None
    assert record.complete
    assert not record.speeds


@pytest.mark.slow
def test_a_server_tunes_itself_without_a_failed_request_and_its_trial_ends_with_it(home: Path) -> None:
    with serving(BENTOML_HOME=str(home), CONVSERVE_TUNE="auto") as (client, pid):
        worker = worker_of(pid)
        deadline = time.monotonic() + 60
        while (model := client.get("/models/lenet5").json()["models"][0])["tuning"]["left"]:
            assert classify(client).status_code == 200
            assert time.monotonic() < deadline, model
            time.sleep(0.05)
        rows = [(engine["precision"], engine["problem"]) for engine in model["engines"] if engine["benchmark"]]
        assert ("fp32", None) in rows
        assert "images/s at batch 8" in model["tuning"]["reason"]
        shutil.rmtree(records.folder())
        while not (children := worker.children()):
            assert time.monotonic() < deadline + 60
            time.sleep(0.1)
        os.kill(children[0].pid, 19)
        worker.kill()
        psutil.wait_procs(children, timeout=10)
        assert not children[0].is_running()
