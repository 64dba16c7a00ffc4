"""One real training run, published once, and one real server, shared by all tests."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

# before anything imports bentoml, which reads it once
os.environ["BENTOML_HOME"] = tempfile.mkdtemp(prefix="convserve-tests-")

from engines.published import manifest
from engines.published.store import PublishedModel, published
from tests.serving import ROOT, serving
from training.data import DataSet, load

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def run() -> Run:
    """Runs `python -m ...` at the project's root, in the tests' BENTOML_HOME."""

    def run(*arguments: str | Path, check: bool = True, **environment: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", *map(str, arguments)]
        done = subprocess.run(
            command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, check=False
        )
        if check:
            assert done.returncode == 0, done.stderr
        return done

    return run


@pytest.fixture(scope="session")
def digits() -> DataSet:
    return load("mnist5k")


@pytest.fixture(scope="session")
def lenet5_checkpoint(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """lenet5 trained by its whole recipe."""
    folder = tmp_path_factory.mktemp("checkpoints") / "lenet5-mnist5k"
    run("training", "lenet5", "--data", "mnist5k", "--out", folder)
    return folder


@pytest.fixture(scope="session")
def lenet5(run: Run, lenet5_checkpoint: Path) -> PublishedModel:
    """lenet5 published."""
    run("training", "publish", lenet5_checkpoint)
    (model,) = [model for model in published() if model.manifest.architecture == "lenet5"]
    return model


@pytest.fixture(scope="session")
def lenet5_everywhere(run: Run, lenet5_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> PublishedModel:
    """lenet5 in every precision, in a model store of its own; its folder's third parent."""
    home = tmp_path_factory.mktemp("bentoml")
    run("training", "publish", lenet5_checkpoint, BENTOML_HOME=str(home))
    published = run("training", "publish", lenet5_checkpoint, "--precisions", "fp16,int8", BENTOML_HOME=str(home))
    assert "quantising to INT8" in published.stdout
    (folder,) = (path.parent for path in home.glob("models/*/*/manifest.json"))
    return PublishedModel(folder, manifest.load(folder))


@pytest.fixture(scope="session")
def server(lenet5: PublishedModel) -> Iterator[httpx.Client]:
    """A client of a real `bentoml serve` that serves lenet5, on the CPU."""
    with serving(CONVSERVE_RUNTIME="openvino") as (client, _):
        yield client
