"""Tests of the command that classifies a folder: rows, continuing, errors in one line, and the progress bar."""

from __future__ import annotations

import csv
import io
import shutil
import sys
from pathlib import Path

import httpx
import pytest

from convserve_client import AsyncConvServeClient, Question, folder
from convserve_client.folder import HEADER, FolderError, ProgressBar, classify_folder, pictures
from tests.conftest import Run
from tests.serving import ROOT

pytestmark = pytest.mark.anyio
DIGIT = ROOT / "docs" / "digit.png"


@pytest.fixture
def album(tmp_path: Path) -> Path:
    """Return a folder of three digits, a broken picture, an empty one, and a text."""
    album = tmp_path / "album"
    (album / "more").mkdir(parents=True)
    for name in ("a.png", 'b, "c".PNG', "more/d.png"):
        shutil.copy(DIGIT, album / name)
    (album / "broken.jpg").write_bytes(DIGIT.read_bytes()[:60])
    (album / "empty.gif").touch()
    (album / "notes.txt").write_text("no picture")
    return album


def command(server: httpx.Client | str, album: Path, *more: str | Path) -> list[str | Path]:
    url = server if isinstance(server, str) else str(server.base_url)
    return ["convserve_client", url, album, "--model", "lenet5", "--batch", "2", *more]


def test_a_folder_becomes_a_row_for_each_picture(server: httpx.Client, album: Path, run: Run) -> None:
    done = run(*command(server, album))
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    assert [row["file"] for row in rows] == ["a.png", 'b, "c".PNG', "broken.jpg", "empty.gif", "more/d.png"]
    assert [row["label"] for row in rows] == ["7", "7", "", "", "7"]
    assert [row["problem"].partition(":")[0] for row in rows] == ["", "", "broken_image", "empty_image", ""]
    assert all(float(row["probability"]) > 0.5 and row["model"].startswith("lenet5:") for row in rows if row["label"])
    assert done.stderr == "5 pictures, of which 2 have a problem\n"  # no bar, since this is no terminal


def test_a_run_that_was_cut_off_is_continued(server: httpx.Client, album: Path, tmp_path: Path, run: Run) -> None:
    out = tmp_path / "answers.csv"
    run(*command(server, album, "--out", out))
    whole = out.read_text()
    out.write_text(whole[: whole.index("broken.jpg") + 5])
    assert run(*command(server, album, "--out", out)).stderr.endswith("had a row before\n")
    assert out.read_text() == whole
    assert run(*command(server, album, "--out", out)).stderr.startswith("0 pictures")
    assert out.read_text() == whole


@pytest.mark.parametrize(
    ("more", "error"),
    [
        (("--model", "lenet"), "error: unknown_model: "),
        (("--model", "auto"), "error: invalid_parameter: model=auto needs max_latency_ms or min_accuracy"),
        (("--out", ROOT / "pyproject.toml"), "pyproject.toml was not written by this command: its first line is not"),
        (("--batch", "0"), "argument --batch: the least is 1"),
    ],
)
def test_what_stops_every_picture_is_one_line(
    server: httpx.Client, album: Path, run: Run, more: tuple[str | Path, ...], error: str
) -> None:
    before = (ROOT / "pyproject.toml").read_text()
    done = run(*command(server, album, *more), check=False)
    assert done.returncode in {1, 2}
    assert error in done.stderr.splitlines()[-1]
    assert done.stdout in {"", HEADER}
    assert (ROOT / "pyproject.toml").read_text() == before


def test_a_server_that_is_gone_is_one_line_and_keeps_the_rows(album: Path, tmp_path: Path, run: Run) -> None:
    out = tmp_path / "answers.csv"
    out.write_text(f"{HEADER}a.png,7,0.99,7,lenet5:mnist5k-5c93254d,\n")
    done = run(*command("http://127.0.0.1:9", album, "--out", out, "--patience-s", "0"), check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: unreachable: ConnectError")
    assert len(done.stderr.splitlines()) == 1
    assert len(out.read_text().splitlines()) == 2
    wrong = run(*command("localhost:3000", album), check=False).stderr
    assert wrong == "error: 'localhost:3000' is no address of a server; the form is http://localhost:3000\n"


def answered(request: httpx.Request) -> httpx.Response:
    """Answer 7 to a digit, and that the time is over to any other picture."""
    if request.content == DIGIT.read_bytes():
        stages = dict.fromkeys(("decode", "queue", "inference"), 1.0)
        row = {"predictions": [{"index": 7, "label": "7", "probability": 1.0}], "batch_size": 1, "timing_ms": stages}
        return httpx.Response(200, json={"model": "lenet5:x", "runtime": "null", "precision": "fp32", **row})
    return httpx.Response(504, json={"status": 504, "code": "timeout", "detail": "no answer in time"})


async def test_a_picture_that_is_always_late_has_a_row_and_many_end_the_run(album: Path, tmp_path: Path) -> None:
    out, http = tmp_path / "answers.csv", httpx.AsyncClient(transport=httpx.MockTransport(answered))
    client = AsyncConvServeClient("http://server", http=http, patience_s=0)
    (album / "empty.gif").unlink()
    await classify_folder(client, album, Question("lenet5"), out, batch=1, concurrency=1)
    rows = list(csv.DictReader(io.StringIO(out.read_text())))
    assert [row["problem"] for row in rows] == ["", "", "timeout: no answer in time", ""]
    for name in "efgh":
        (album / f"{name}.png").write_bytes(b"slow")
    with pytest.raises(FolderError, match="timeout: no answer in time"):
        await classify_folder(client, album, Question("lenet5"), out, batch=1, concurrency=1)
    assert len(out.read_text().splitlines()) == 1 + 4 + 3


def test_a_folder_needs_pictures(tmp_path: Path) -> None:
    with pytest.raises(FolderError, match="has no picture: no file ends in"):
        pictures(tmp_path)
    with pytest.raises(FolderError, match="is no folder"):
        pictures(tmp_path / "missing")


class Terminal(io.StringIO):
    """Standard error of a terminal."""

    def isatty(self) -> bool:
        return True


def test_a_terminal_shows_what_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    monkeypatch.setattr(folder, "REDRAWN_S", 0.0)
    bar = ProgressBar(1000)
    bar.show(500)
    bar.show(1000)
    bar.end()
    half, whole = terminal.getvalue().split("\r")[1:]
    assert half.startswith(f"[{'#' * 15}{'.' * 15}] 500 of 1,000, ")
    assert whole.startswith(f"[{'#' * 30}] 1,000 of 1,000, ")
    assert whole.endswith(", 0 s left   \n")
    monkeypatch.setattr(sys, "stderr", plain := io.StringIO())
    ProgressBar(1).show(1)
    assert not plain.getvalue()
