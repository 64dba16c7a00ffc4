"""Tests of `sweep`, `diff` and `smoke` with a real server, and of `report` on their results."""

from __future__ import annotations

import itertools
import threading
import time
from http.server import ThreadingHTTPServer
from pathlib import Path

import httpx
import psutil
import pytest

from loadtest import rows
from loadtest.diff import ratio_interval
from loadtest.rounds import AGAIN
from loadtest.store import write_rows
from tests.conftest import Run
from tests.loadtest.conftest import Locust
from tests.loadtest.stub import Alternates, stub_server
from tests.serving import serving

QUICK = ("--seconds", "1", "--steps", "2", "--in-flight", "4", "--p99-ms", "2000")


@pytest.fixture(scope="module")
def results(run: Run, host: str, images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the file of a sweep with two rounds of lenet5, of which the second is the first once more."""
    out = tmp_path_factory.mktemp("sweep") / "sweep.jsonl"
    run("loadtest", "sweep", "--host", host, "--images", images, *QUICK, "--out", out)
    architectures, (row,) = rows.read(out)
    write_rows(out, [*architectures, row, row.model_copy(update={"round": 1})])
    return out


def test_a_sweep_measures_every_load(results: Path, server: httpx.Client) -> None:
    architectures, engines = rows.read(results)
    assert len(architectures) == len(server.get("/models").json())
    assert [(row.architecture, row.precision, row.round) for row in engines] == [
        ("lenet5", "fp32", 0),
        ("lenet5", "fp32", 1),
    ]
    for row in engines:
        assert (row.params, row.macs, row.images) == (60_000, 325_680, 1000)
        assert row.top1 is not None
        assert row.top1 >= 0.96
        assert row.problem is None
        assert row.single
        assert row.offline
        assert row.max_rate
        assert len(row.search) == 2
        assert row.at_percent.keys() == {"10", "50", "80"}
        for point in (row.single, row.offline, *row.search, *row.at_percent.values()):
            assert point.failures == 0
            assert point.answers > 0
            assert point.p50_ms <= point.p90_ms <= point.p99_ms <= point.max_ms
            assert point.stages_ms.keys() == {"decode", "queue", "inference"}
            assert point.cpu_ms > 0
            assert point.memory_mb > 50
        assert sum(row.single.stages_ms.values()) <= row.single.max_ms
        assert row.max_rate < row.offline.achieved
        assert row.server["openvino"]


def test_a_sweep_goes_on_and_measures_only_what_is_missing(
    run: Run, host: str, images: Path, results: Path, tmp_path: Path
) -> None:
    architectures, (first, second) = rows.read(results)
    broken = second.model_copy(update={"problem": "the server went away"})
    out = tmp_path / "sweep.jsonl"
    write_rows(out, [*architectures, first, broken])
    run("loadtest", "sweep", "--host", host, "--images", images, *QUICK, "--rounds", "2", "--out", out)
    _, again = rows.read(out)
    assert 2 <= len(again) <= 2 + AGAIN  # more if the two contradict each other
    assert again[0] == first
    assert again[1].problem is None
    assert again[1].single != second.single
    other = run("loadtest", "sweep", "--host", host, "--images", images, "--out", out, check=False)
    assert other.returncode == 1
    assert "was measured with --seconds 1 --in-flight 4 --p99-ms 2000 --steps 2, not with --seconds 10" in other.stderr
    assert "choose another --out" in other.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--models", "lenet5,lenet6"], "there is no model 'lenet6'"),
        (["--models", "senet154"], "python -m training import senet154"),
        (["--precisions", "fp32,int8"], "is published in fp32, bf16, not in int8"),
        (["--precisions", "fp64"], "precision"),
        (["--images", "/nonexistent"], "no images in /nonexistent"),
        (["--host", "http://127.0.0.1:9"], "http://127.0.0.1:9 does not answer"),
    ],
)
def test_a_sweep_names_what_is_missing_before_it_starts(
    run: Run, host: str, images: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    out = tmp_path / "sweep.jsonl"
    usual = ["--host", host, "--images", images, "--out", out]
    done = run("loadtest", "sweep", *usual, *arguments, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert not out.exists()


def test_what_was_measured_before_the_server_went_away_is_kept_and_marked(
    run: Run, images: Path, tmp_path: Path
) -> None:
    out = tmp_path / "sweep.jsonl"
    with serving(CONVSERVE_RUNTIME="openvino") as (client, pid):
        killer = threading.Thread(target=kill_once_there, args=(out, pid))
        killer.start()
        usual = ["--host", str(client.base_url).rstrip("/"), "--images", images, "--out", out]
        done = run("loadtest", "sweep", *usual, *QUICK, "--rounds", "9", check=False)
        killer.join()
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr
    _, engines = rows.read(out)
    assert 2 <= len(engines) < 9
    assert all(row.problem is None and row.max_rate for row in engines[:-1])
    assert engines[-1].problem


def kill_once_there(path: Path, pid: int) -> None:
    """Kill a server and its workers once a file exists."""
    while not path.exists():
        time.sleep(0.1)
    for process in [*psutil.Process(pid).children(recursive=True), psutil.Process(pid)]:
        process.kill()


def test_two_sweeps_are_compared_with_intervals(run: Run, results: Path, tmp_path: Path) -> None:
    architectures, engines = rows.read(results)
    slower = [row.model_copy(update={"max_rate": (row.max_rate or 0) / 8}) for row in engines]
    write_rows(tmp_path / "b.jsonl", [*architectures, *slower])
    table = run("loadtest", "diff", results, tmp_path / "b.jsonl").stdout.splitlines()
    (line,) = [line for line in table if "highest rate" in line]
    assert "| 0.125 |" in line
    (same,) = [line for line in table if "offline, images/s" in line]
    assert "| 1.000 |" in same
    assert "yes" not in same


def test_an_interval_holds_the_ratio_and_narrows_with_rounds() -> None:
    few = ratio_interval([100, 110], [200, 220])
    many = ratio_interval([100, 110] * 5, [200, 220] * 5)
    assert few
    assert many
    assert few[0] < many[0] < 2 < many[1] < few[1]
    assert ratio_interval([100], [200, 220]) is None
    assert ratio_interval([100, 100], [200, 200]) == pytest.approx((2, 2))


def test_the_report_says_which_model_to_serve(run: Run, results: Path, tmp_path: Path) -> None:
    done = run("loadtest", "report", results, "--out", tmp_path, "--p99-ms", "500")
    answer, wrote = done.stdout.splitlines()
    assert answer.startswith("Serve lenet5 in fp32: 9")
    assert answer.endswith(" % right on mnist5k, the most accurate of 1 with a p99 within 500 ms.")
    assert wrote == f"wrote {tmp_path / 'index.html'}"
    assert answer in (tmp_path / "index.html").read_text()
    assert (tmp_path / "measured.csv").read_text().count("lenet5 fp32") == 1


def test_a_report_of_nothing_says_so(run: Run, tmp_path: Path) -> None:
    done = run("loadtest", "report", tmp_path / "none.jsonl", "--out", tmp_path, check=False)
    assert (done.returncode, "Traceback" in done.stderr) == (1, False)
    assert "python -m loadtest sweep" in done.stderr


@pytest.mark.slow
def test_a_report_of_other_rows_says_so(run: Run, tmp_path: Path) -> None:
    (tmp_path / "none.jsonl").write_text('{"kind": "else"}\n')
    done = run("loadtest", "report", tmp_path / "none.jsonl", "--out", tmp_path, check=False)
    assert "is not what" in done.stderr


def test_smoke_reports_answers_that_belong_to_another_image(run: Run, images: Path) -> None:
    with stub_server(Alternates) as host:
        done = run("loadtest", "smoke", "--host", host, "--images", images, check=False)
    assert done.returncode == 1
    assert "other than alone" in done.stderr


class GoesAway(Alternates):
    """Handler whose server ends after thirty answers."""

    left = itertools.count(30, -1)

    def answer(self) -> bytes:
        """Return an answer; after the last one close the server, and each connection that is still open."""
        if next(self.left) > 0:
            return super().answer()
        self.server.shutdown()
        self.server.server_close()
        return b""


def test_a_run_whose_server_goes_away_ends(locust: Locust) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), GoesAway)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    done = locust(f"http://127.0.0.1:{server.server_port}", "--scenario", "server", "-t", "120s")
    assert done.returncode == 1
    assert "no answer for 5 s" in done.stderr
    assert "lenet5: offered" in done.stderr  # the results until then are logged
