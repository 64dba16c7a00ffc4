"""Tests of `python -m loadtest peers`: every peer and upper bound is started, with a real model and photos."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from engines.published.store import PublishedModel
from loadtest.peers import AS_INSTALLED
from loadtest.peers.launch import INSTALLED, SERVERS, TUNED, Peer, PeerServer, environment, installed
from loadtest.peers.photos import read_json_tensors
from loadtest.peers.results import read_peers, summary
from loadtest.traffic import ScenarioError
from tests.conftest import Run
from tests.serving import ROOT

QUICK = ("--models", "lenet5", "--connections", "2", "--rounds", "1", "--seconds", "1")


@pytest.fixture(scope="module")
def measured(run: Run, lenet5: PublishedModel, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Return the file of one round at two connections, and the table that the command printed."""
    assert lenet5
    out = tmp_path_factory.mktemp("peers") / "peers.jsonl"
    return out, run("loadtest", "peers", *QUICK, "--out", out).stdout


@pytest.mark.slow
def test_every_peer_answers_as_the_engine_does(measured: tuple[Path, str]) -> None:
    rows = {row.server: row for row in read_peers(measured[0])}
    assert rows.keys() == set(installed(SERVERS, TUNED))
    for server, row in rows.items():
        assert row.answers > 0
        assert (row.failed, row.error) == (0, None)
        assert row.wrong == (None if server == "empty mounted route" else 0)
        assert row.cpu_s > 0
        assert row.pss_bytes > 1e7
        assert (row.client_cpu_s is None) == ("no HTTP" in server)


@pytest.mark.slow
def test_the_table_has_a_line_a_peer_and_says_how_it_was_measured(measured: tuple[Path, str]) -> None:
    for server in installed(SERVERS, TUNED):
        assert f"| 2 | {server} |" in measured[1]
    for words in (
        "litserve 0.",
        "openvino 2026",
        "OpenVINO in fp32",
        "10 JPEG photos",
        "1 s a turn after 2 s of warm-up",
    ):
        assert words in measured[1]


@pytest.mark.slow
def test_what_is_there_is_not_measured_again(run: Run, measured: tuple[Path, str]) -> None:
    before = measured[0].read_bytes()
    assert run("loadtest", "peers", *QUICK, "--out", measured[0]).stdout == measured[1]
    assert measured[0].read_bytes() == before


@pytest.mark.slow
def test_a_server_without_answers_is_reported(measured: tuple[Path, str]) -> None:
    silent = [row.model_copy(update={"answers": 0, "failed": 5}) for row in read_peers(measured[0])]
    assert " | 5 | " in summary(silent)


@pytest.mark.slow
def test_every_server_answers_as_installed(run: Run, lenet5: PublishedModel, tmp_path: Path) -> None:
    assert lenet5
    out = tmp_path / "peers.jsonl"
    table = run("loadtest", "peers", *QUICK, "--as-installed", "--rest", "1", "--out", out).stdout
    rows = {row.server: row for row in read_peers(out)}
    assert tuple(rows) == installed(INSTALLED, INSTALLED)
    for server, row in rows.items():
        assert row.answers > 0
        assert (row.failed, row.error) == (0, None)
        assert f"| 2 | {server} |" in table
    assert "each server as installed, convserve 1 s after its first start" in table


def test_as_installed_a_server_has_no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONVSERVE_MAX_BATCH", "7")
    assert not [name for name in environment("lenet5", AS_INSTALLED) if name.startswith("CONVSERVE_")]
    assert environment("lenet5", "int8")["CONVSERVE_PRECISION"] == "int8"


def test_a_server_that_is_not_installed_is_left_out(tmp_path: Path) -> None:
    peer = Peer((), package="mlserver", own=tmp_path / "mlserver")
    compared = {"convserve": Peer(()), "MLServer": peer}
    assert installed(["convserve", "MLServer", "engine"], compared) == ("convserve", "engine")
    about = tmp_path / "mlserver" / "lib" / "python3.11" / "site-packages" / "mlserver-1.7.1.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: mlserver\nVersion: 1.7.1\n")
    assert (peer.version, peer.python) == ("1.7.1", tmp_path / "mlserver" / "bin" / "python")
    assert installed(["convserve", "MLServer", "engine"], compared) == ("convserve", "MLServer", "engine")


def test_an_answer_of_mlserver_is_read() -> None:
    def answer(status: int = 200, **outputs: Any) -> Any:
        tensors = [{"name": name, "data": data} for name, data in outputs.items()]
        body = {"outputs": tensors}
        return SimpleNamespace(status_code=status, text=json.dumps(body), json=lambda: body)

    assert read_json_tensors(answer(label=["7"], probability=[0.5])) == "7"
    for broken in (
        answer(500),
        answer(label=["7"]),
        answer(label=["7", "7"], probability=[0.5, 0.5]),
        answer(label=["7"], probability=[7]),
    ):
        with pytest.raises(ValueError, match=r"^(200|500): "):
            read_json_tensors(broken)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--models", "senet154"], "python -m training"),
        (["--precision", "int8"], "int8"),
        (["--images", "/nonexistent"], "no .jpg in /nonexistent"),
    ],
)
def test_what_is_missing_is_named(
    run: Run, lenet5: PublishedModel, tmp_path: Path, arguments: list[str], message: str
) -> None:
    assert lenet5
    done = run("loadtest", "peers", *QUICK, *arguments, "--out", tmp_path / "peers.jsonl", check=False)
    assert (done.returncode, "Traceback" in done.stderr) == (1, False)
    assert message in done.stderr


def test_a_peer_that_does_not_start_shows_the_end_of_its_log(run: Run, lenet5: PublishedModel, tmp_path: Path) -> None:
    assert lenet5
    out = tmp_path / "peers.jsonl"
    done = run("loadtest", "peers", *QUICK, "--out", out, check=False, CONVSERVE_MAX_BATCH="0")
    assert (done.returncode, "Traceback" in done.stderr) == (1, False)
    assert f"error: convserve does not serve {lenet5.manifest.tag}: it ended with 1" in done.stderr
    assert "CONVSERVE_MAX_BATCH: Input should be greater than or equal to 1" in done.stderr


def test_a_library_that_is_missing_is_named(run: Run, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['litserve'] = None\n")
    done = run("loadtest", "peers", check=False, PYTHONPATH=str(tmp_path))
    assert done.returncode == 1
    assert done.stderr == "error: litserve is not installed here: pip install '.[loadtest,peers]'\n"


def test_results_of_something_else_are_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "peers.jsonl").write_text("{}\n")
    with pytest.raises(ScenarioError, match="is not what `python -m loadtest peers` writes"):
        read_peers(tmp_path / "peers.jsonl")


def runs_bentoml(process: psutil.Process) -> bool:
    """Return True for a process of BentoML that has not ended."""
    with suppress(psutil.NoSuchProcess):
        return "bentoml" in process.cmdline()
    return False


def test_time_of_processes_that_have_ended_is_counted() -> None:
    work = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'sum(range(10**7))']); input()"
    with subprocess.Popen([sys.executable, "-c", work], stdin=subprocess.PIPE) as parent:
        server = PeerServer("", psutil.Process(parent.pid))
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and sum(server.process.cpu_times()[2:4]) < 0.05:
            time.sleep(0.02)
        assert len(server.tree()) == 1
        assert server.cpu_s() >= sum(server.process.cpu_times()[:4]) - 0.02
        assert server.cpu_s() > sum(server.process.cpu_times()[:2])
        assert server.pss_bytes() > 1e6
        parent.communicate(b"\n")


def test_a_command_that_is_terminated_stops_its_server(lenet5: PublishedModel, tmp_path: Path) -> None:
    assert lenet5
    command = [sys.executable, "-m", "loadtest", "peers", *QUICK, "--out", str(tmp_path / "peers.jsonl")]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as peers:
        process = psutil.Process(peers.pid)
        while not (servers := [child for child in process.children(recursive=True) if runs_bentoml(child)]):
            assert peers.poll() is None
            time.sleep(0.1)
        peers.terminate()
        assert peers.wait(timeout=60) == 128 + signal.SIGTERM
    assert not psutil.wait_procs(servers, timeout=10)[1]
