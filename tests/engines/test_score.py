"""Tests of the command `score`: every picture has one row, whatever breaks, is killed or goes on later."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from engines.__main__ import main
from engines.published import picture, store
from engines.published.store import PublishedModel
from engines.published.urls import BucketError
from engines.runtimes.engine import EngineError
from engines.runtimes.registry import EngineSpec, open_engine
from engines.scoring import command, pictures
from engines.scoring.cluster import Devices, devices_of
from engines.scoring.command import score
from engines.scoring.decoders import DecodingPool
from engines.scoring.parquet import AnswersFolder, text_of
from engines.scoring.score import Job
from tests.serving import ROOT
from training.data import DataSet

COUNT = 40
Scored = Callable[..., list[dict[str, Any]]]

# Starts a decoding process of the model in argv[1], prints its process id, and waits.
DECODER = """
import sys, time
from pathlib import Path
from engines.published import manifest
from engines.scoring.decoders import DecodingPool

with DecodingPool(manifest.load(Path(sys.argv[1])).preprocess, batch=1, slots=1, processes=1) as pool:
    pool.submit(0, ["missing"]).result()
    print(*pool._pool._processes, flush=True)
    time.sleep(60)
"""

# Scores parts of ten pictures of the folder argv[3] on the cluster argv[1], with the model argv[2], and prints the rows
# of each.
BY_RAY = """
import sys
from engines.scoring import cluster, pictures
from engines.scoring.score import Job

job = Job(model=sys.argv[2], precision="fp32", top_k=1, embeddings=False)
paths = pictures.find(sys.argv[3])
for table in cluster.tables(sys.argv[1], [paths[start : start + 10] for start in range(0, len(paths), 10)], job):
    print(table.num_rows, *table.column("path").to_pylist(), flush=True)
"""


@pytest.fixture(scope="module")
def photos(digits: DataSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with forty digits, of which half are in a folder below, and a file that is no picture."""
    folder = tmp_path_factory.mktemp("photos")
    (folder / "below").mkdir()
    for number in range(COUNT):
        digits.held_out.pictures[number].save(folder / ("below" if number % 2 else "") / f"{number:02}.png")
    (folder / "README.txt").write_text("digits")
    return folder


@pytest.fixture
def scored(lenet5: PublishedModel, tmp_path: Path) -> Scored:
    """Score into a folder of this test, and return its rows."""
    parquet: Any = import_module("pyarrow.parquet")

    def scored(source: Path | str, **changes: Any) -> list[dict[str, Any]]:
        options: dict[str, Any] = {"top_k": 3, "precision": "fp32", "embeddings": False, "ray": None} | changes
        assert score(str(source), lenet5, str(tmp_path / "answers.parquet"), **options) == 0
        rows: list[dict[str, Any]] = parquet.read_table(tmp_path / "answers.parquet").to_pylist()
        return rows

    return scored


def test_the_answers_are_those_of_the_engine_on_the_servers_pixels(
    lenet5: PublishedModel, photos: Path, scored: Scored, tmp_path: Path
) -> None:
    rows = scored(photos)
    paths = [row["path"] for row in rows]
    assert paths == sorted(str(path) for path in photos.rglob("*.png"))
    engine = open_engine(lenet5, EngineSpec("openvino", "fp32"))
    preprocess, labels = lenet5.manifest.preprocess, lenet5.manifest.labels
    logits = engine.infer(np.stack([preprocess(picture.read_picture(Path(path))) for path in paths]))
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares = exponentials / exponentials.sum(axis=1, keepdims=True)
    for row, own, share in zip(rows, logits, shares, strict=True):
        best = np.argsort(-own)[:3]
        assert [one["index"] for one in row["top"]] == best.tolist()
        assert [one["label"] for one in row["top"]] == [labels[index] for index in best]
        assert [one["probability"] for one in row["top"]] == pytest.approx(share[best].tolist(), abs=1e-4)
        assert (row["label"], row["error"]) == (labels[best[0]], None)
    parquet: Any = import_module("pyarrow.parquet")
    (part,) = (tmp_path / "answers.parquet").glob("part-*.parquet")
    about = json.loads(parquet.read_schema(part).metadata[b"convserve"])
    assert about["engine"] == "openvino fp32"
    assert about["job"]["model"] == lenet5.manifest.tag


def test_a_broken_picture_is_a_row_with_its_error(photos: Path, scored: Scored, tmp_path: Path) -> None:
    good = photos / "00.png"
    half, text, missing = tmp_path / "half.png", tmp_path / "text.jpg", tmp_path / "missing.png"
    program = tmp_path / "program.jpg"
    program.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n")
    half.write_bytes(good.read_bytes()[:100])
    text.write_text("no picture")
    listed = tmp_path / "list"
    listed.write_text("\n".join(map(str, [half, good, text, program, missing, good, ""])))
    rows = {row["path"]: row for row in scored(listed)}
    assert rows.keys() == {str(half), str(good), str(text), str(program), str(missing)}
    assert rows[str(good)]["label"]
    assert rows[str(half)]["error"].startswith("it cannot be decoded: ")
    for other in (text, program):
        assert rows[str(other)]["error"] == "it cannot be decoded: cannot identify image file"
    assert rows[str(missing)]["error"] == "it cannot be read: No such file or directory"
    assert [rows[str(path)]["top"] for path in (half, text, missing)] == [None, None, None]


def test_a_run_that_was_stopped_goes_on(
    lenet5: PublishedModel,
    photos: Path,
    scored: Scored,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(command, "PART", 8)
    folder = AnswersFolder(str(tmp_path / "answers.parquet"))
    job = Job(model=lenet5.manifest.tag, precision="fp32", top_k=3, embeddings=False)
    folder.begin(job)
    tables = command.tables_here(lenet5, pictures.find(str(photos)), job)
    for _ in range(2):
        folder.write(next(tables))
    del tables
    (tmp_path / "answers.parquet" / "_part-000003.parquet").write_bytes(b"of a write that was killed")
    rows = scored(photos)
    assert f"16 of {COUNT} pictures have an answer" in capsys.readouterr().out
    assert sorted(row["path"] for row in rows) == pictures.find(str(photos))
    assert scored(photos) == rows  # nothing is left to do
    with pytest.raises(BucketError, match="has answers with top_k 3, not 5: name another with --out"):
        scored(photos, top_k=5)
    with folder.held(), pytest.raises(BucketError, match="another process writes to"):
        scored(photos)


def test_embeddings_are_what_the_last_linear_layer_reads(photos: Path, scored: Scored) -> None:
    rows = scored(photos, embeddings=True, precision="auto")
    assert {len(row["embedding"]) for row in rows} == {120}  # of lenet5's F6
    assert len({tuple(row["embedding"]) for row in rows}) == COUNT
    with pytest.raises(EngineError, match="--embeddings are of fp32 only"):
        scored(photos, embeddings=True, precision="int8")


def test_a_killed_decoder_loses_no_picture(lenet5: PublishedModel, photos: Path) -> None:
    paths = pictures.find(str(photos))[:4]
    with DecodingPool(lenet5.manifest.preprocess, batch=4, slots=2, processes=1) as pool:
        first = pool.submit(0, paths)
        assert pool.errors_of(first, 0, paths) == [None] * 4
        expected = pool.pixels[0].copy()
        for process in list(pool._pool._processes.values()):
            assert process.pid
            os.kill(process.pid, signal.SIGKILL)
        second = pool.submit(1, paths)
        assert pool.errors_of(second, 1, paths) == [None] * 4
        assert (pool.pixels[1] == expected).all()
        third = pool.submit(0, paths)
        assert pool.errors_of(third, 0, paths) == [None] * 4


def test_decoders_end_with_a_process_that_is_killed(lenet5: PublishedModel) -> None:
    command = [sys.executable, "-c", DECODER, str(lenet5.folder)]
    with subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE) as parent:
        assert parent.stdout
        decoder = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
        deadline = time.monotonic() + 10
        with suppress(psutil.NoSuchProcess):
            while decoder.status() != psutil.STATUS_ZOMBIE:  # which the first process of a container may leave
                assert time.monotonic() < deadline
                time.sleep(0.05)


def test_what_is_no_source_or_no_place_for_answers_is_said(
    lenet5: PublishedModel, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def error_of(*arguments: str | Path) -> object:
        monkeypatch.setattr(sys, "argv", ["engines", "score", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code

    (tmp_path / "empty").mkdir()
    out, model = ("--out", tmp_path / "out"), ("--model", "lenet5")
    assert str(error_of(tmp_path / "empty", *model, *out)).startswith(f"error: {tmp_path}/empty has no picture: ")
    second = PublishedModel(lenet5.folder, lenet5.manifest.model_copy(update={"dataset": "signs"}))
    with monkeypatch.context() as patch:
        patch.setattr(store, "published", lambda: [lenet5, second])
        assert "name one by its data set, lenet5@mnist5k or lenet5@signs, or by its tag" in str(
            error_of(photos, *model)
        )
    assert error_of(tmp_path / "gone", *model, *out) == f"error: there is no {tmp_path}/gone"
    assert str(error_of(photos, *model, "--out", photos)).startswith(f"error: {photos} is there, and is not of this")
    lacking = f"error: {lenet5.manifest.tag} is published in fp32, bf16, not in int8"
    assert error_of(photos, *model, *out, "--precision", "int8") == lacking
    assert not (tmp_path / "out").exists()


def test_a_name_that_is_not_utf8_becomes_text() -> None:
    assert text_of(os.fsdecode(b"/photos/\xff.png")) == r"/photos/\xff.png"


def test_an_actor_has_a_gpu_or_all_cores_of_the_smallest_machine() -> None:
    def node(alive: bool = True, **resources: float) -> dict[str, Any]:
        return {"Alive": alive, "Resources": resources}

    processors = [node(CPU=4.0), node(CPU=16.0), node(CPU=8.0, alive=False), node()]
    assert devices_of(processors) == Devices(5, {"num_cpus": 4})
    gpus = [node(CPU=16.0, GPU=2.0), node(CPU=12.0, GPU=1.0), node(CPU=64.0)]
    assert devices_of(gpus) == Devices(3, {"num_gpus": 1, "num_cpus": 8})
    with pytest.raises(EngineError, match="no machine with a core"):
        devices_of([node()])


@pytest.mark.slow
@pytest.mark.skipif(not find_spec("ray"), reason="ray is not installed: pip install '.[ray]'")
def test_a_cluster_completes_after_one_of_its_two_machines_is_killed(
    lenet5: PublishedModel, digits: DataSet, tmp_path: Path
) -> None:
    for number in range(200):
        picture_of_30_ms = digits.held_out.pictures[number].resize((1500, 1500))
        picture_of_30_ms.save(tmp_path / f"{number:03}.png")
    pipes: dict[str, Any] = {"cwd": ROOT, "text": True, "bufsize": 1, "stdout": subprocess.PIPE}
    starting = [sys.executable, "-m", "tests.engines.ray_cluster"]
    with subprocess.Popen(starting, stdin=subprocess.PIPE, **pipes) as nodes:
        assert nodes.stdin
        assert nodes.stdout
        address = nodes.stdout.readline().strip()
        scoring = [sys.executable, "-c", BY_RAY, address, lenet5.manifest.tag, str(tmp_path)]
        with subprocess.Popen(scoring, stderr=subprocess.PIPE, **pipes) as run:
            assert run.stdout
            lines = [run.stdout.readline()]
            print(file=nodes.stdin)
            assert nodes.stdout.readline() == "killed\n"
            lines += run.stdout.readlines()
            assert run.wait(60) == 0, run.stderr and run.stderr.read()
        print(file=nodes.stdin)
    rows = [path for line in lines if line.startswith("10 ") for path in line.split()[1:]]  # Ray prints others
    assert sorted(rows) == sorted(map(str, tmp_path.glob("*.png")))
