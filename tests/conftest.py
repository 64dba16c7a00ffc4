"""Fixtures of all tests: one real training run, published once, and one real server a process."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from filelock import FileLock

# Set before anything imports bentoml or torch, which read these once. Each process has a model store of its own, and
# with several processes, further threads would only take the cores from each other.
os.environ["BENTOML_HOME"] = tempfile.mkdtemp(prefix="convserve-tests-")
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

from engines.published import manifest
from engines.published.store import PublishedModel, published
from engines.runtimes import registry
from engines.runtimes.tensorrt.gpu import NO_GPU
from tests import gpu_summary
from tests.serving import ROOT, serving
from tests.warm import Warm
from training.data import DataSet, load

Measured = Callable[[str], None]
Run = Callable[..., subprocess.CompletedProcess[str]]
Once = Callable[[str, Callable[[Path], object]], Path]


def only_model(home: Path) -> PublishedModel:
    """Return the one model that is published in BentoML's folder `home`."""
    (folder,) = (path.parent for path in home.glob("models/*/*/manifest.json"))
    return PublishedModel(folder, manifest.load(folder))


@pytest.hookimpl(optionalhook=True)  # only pytest-xdist has this hook
def pytest_xdist_auto_num_workers() -> int:
    """Return the number of processes of `pytest -n auto`: more than cores, since many tests wait for a server."""
    return (os.cpu_count() or 1) * 3 // 2


def pytest_unconfigure() -> None:
    """Remove the model store of this process."""
    shutil.rmtree(os.environ["BENTOML_HOME"], ignore_errors=True)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say at the end of `pytest -m gpu` what ran on the GPU and what could not."""
    if config.option.markexpr == "gpu" and not config.option.collectonly:
        terminalreporter.section("on this machine's GPU")
        for line in gpu_summary.lines(terminalreporter.stats):
            terminalreporter.write_line(line)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test that needs a GPU where there is none, before its fixtures are made."""
    if item.get_closest_marker("gpu") and registry.gpu_of("tensorrt") is None:
        pytest.skip(NO_GPU)


@pytest.fixture
def measured(record_property: Callable[[str, object], None]) -> Measured:
    """Return a function that adds a line to what `pytest -m gpu` says at its end."""
    return lambda line: record_property("measured", line)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def warm() -> Iterator[Warm]:
    """Yield what runs commands of training, which import for seconds, in forks of a process that has imported."""
    with Warm() as warm:
        yield warm


@pytest.fixture(scope="session")
def run(warm: Warm) -> Run:
    """Return a function that runs `python -m ...` at the project's root, in the tests' BENTOML_HOME."""

    def run(*arguments: str | Path, check: bool = True, **environment: str) -> subprocess.CompletedProcess[str]:
        words = list(map(str, arguments))
        if words[0] == "training":
            done = warm.run(words, os.environ | environment)
        else:
            command = [sys.executable, "-m", *words]
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
def once(tmp_path_factory: pytest.TempPathFactory) -> Once:
    """Make a folder once for all processes of pytest-xdist, each of which waits until the folder is complete."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def once(name: str, make: Callable[[Path], object]) -> Path:
        folder, complete = shared / name, shared / f"{name}.complete"
        with FileLock(shared / f"{name}.lock"):
            if not complete.exists():
                make(folder)
                complete.touch()
        return folder

    return once


@pytest.fixture(scope="session")
def lenet5_checkpoint(run: Run, once: Once) -> Path:
    """Return the folder of lenet5's checkpoint, trained by the whole recipe; tests copy the folder to change a file."""
    return once("lenet5-mnist5k", lambda folder: run("training", "lenet5", "--data", "mnist5k", "--out", folder))


@pytest.fixture(scope="session")
def lenet5(run: Run, once: Once, lenet5_checkpoint: Path) -> PublishedModel:
    """Return lenet5, published in the model store of this process."""

    def publish(home: Path) -> None:
        run("training", "publish", lenet5_checkpoint, "--precisions", "fp32", BENTOML_HOME=str(home))

    home = once("lenet5-fp32", publish)
    shutil.copytree(home, os.environ["BENTOML_HOME"], dirs_exist_ok=True)
    (model,) = [model for model in published() if model.manifest.architecture == "lenet5"]
    return model


@pytest.fixture(scope="session")
def lenet5_everywhere(
    run: Run, once: Once, lenet5: PublishedModel, lenet5_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> PublishedModel:
    """Return lenet5 in every precision, in a model store of its own: the third parent of the model's folder."""

    def publish(home: Path) -> None:
        shutil.copytree(lenet5.folder, home / "models" / "lenet5" / lenet5.folder.name)
        printed = run("training", "publish", lenet5_checkpoint, BENTOML_HOME=str(home)).stdout
        assert printed.startswith("keeping fp32\nfp16: ")
        assert "\nquantising to INT8\n" in printed

    home = tmp_path_factory.mktemp("bentoml")
    shutil.copytree(once("lenet5-everywhere", publish), home, dirs_exist_ok=True)
    return only_model(home)


@pytest.fixture(scope="session")
def server_and_pid(lenet5: PublishedModel) -> Iterator[tuple[httpx.Client, int]]:
    """Yield a client of a real `bentoml serve` that serves lenet5 on the CPU, and its process id."""
    with serving(CONVSERVE_RUNTIME="openvino") as served:
        yield served


@pytest.fixture(scope="session")
def server(server_and_pid: tuple[httpx.Client, int]) -> httpx.Client:
    """Return a client of the real server."""
    return server_and_pid[0]
