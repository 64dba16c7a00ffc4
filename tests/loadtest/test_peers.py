"""`python -m loadtest peers`: every peer and frame, really started, with a real model and photos."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from engines.published.store import PublishedModel
from loadtest.peers.results import Results, table
from loadtest.peers.servers import SERVERS
from loadtest.traffic import ScenarioError
from tests.conftest import Run

QUICK = ("--models", "lenet5", "--connections", "2", "--rounds", "1", "--seconds", "1")


@pytest.fixture(scope="module")
def measured(run: Run, lenet5: PublishedModel, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The file of one round at two connections, and the table that was printed."""
    assert lenet5
    out = tmp_path_factory.mktemp("peers") / "peers.jsonl"
    return out, run("loadtest", "peers", *QUICK, "--out", out).stdout


def test_every_peer_answers_as_the_engine_does(measured: tuple[Path, str]) -> None:
    rows = {row.server: row for row in Results(measured[0]).rows.values()}
    assert rows.keys() == set(SERVERS)
    for server, row in rows.items():
        assert row.answers > 0
        assert (row.failed, row.error) == (0, None)
        assert row.wrong == (None if server == "empty mounted route" else 0)
        assert row.cpu_s > 0
        assert row.pss_bytes > 1e7
        assert (row.client_cpu_s is None) == ("no HTTP" in server)


def test_the_table_has_a_line_a_peer_and_says_how_it_was_measured(measured: tuple[Path, str]) -> None:
    for server in SERVERS:
        assert f"| 2 | {server} |" in measured[1]
    for told in (
        "litserve 0.",
        "openvino 2026",
        "OpenVINO in fp32",
        "10 JPEG photos",
        "1 s a turn after 2 s of warm-up",
    ):
        assert told in measured[1]


def test_what_is_there_is_not_measured_again(run: Run, measured: tuple[Path, str]) -> None:
    before = measured[0].read_bytes()
    assert run("loadtest", "peers", *QUICK, "--out", measured[0]).stdout == measured[1]
    assert measured[0].read_bytes() == before


def test_a_server_without_an_answer_is_told_and_divides_nothing(measured: tuple[Path, str]) -> None:
    rows = list(Results(measured[0]).rows.values())
    silent = [json.loads(json.dumps(vars(row))) | {"answers": 0, "failed": 5} for row in rows]
    assert " | 5 | " in table([type(row)(**values) for row, values in zip(rows, silent, strict=True)])


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
    with pytest.raises(ScenarioError, match="holds no results of this command"):
        Results(tmp_path / "peers.jsonl")
