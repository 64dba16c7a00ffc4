"""Tests of a server that chooses the fastest faithful engine by its records, and reports the records."""

from __future__ import annotations

import shutil
import time
from itertools import product
from pathlib import Path
from typing import Any

import httpx
import pytest

from engines.measured.records import Speed
from engines.measured.select_engine import rate
from engines.published.store import PublishedModel
from tests.conftest import Run
from tests.processor import INT8_OVERFLOWS
from tests.service.test_lifecycle import classify, constant_load
from tests.serving import ROOT, serving

PRECISIONS = ("fp32", "int8")
DIGIT = ROOT / "docs" / "digit.png"


@pytest.fixture(scope="module")
def home(run: Run, lenet5_everywhere: PublishedModel) -> Path:
    """Return a BENTOML_HOME in which lenet5's engines are verified, and its OpenVINO engines timed."""
    home = lenet5_everywhere.folder.parents[2]
    precisions = ("--precisions", ",".join(PRECISIONS))
    run("engines", "verify", "--runtimes", "openvino,onnxruntime", *precisions, BENTOML_HOME=str(home))
    batches = ("--batches", "1,8", "--seconds", "0.3")
    run("engines", "bench", "--runtimes", "openvino", *precisions, *batches, BENTOML_HOME=str(home))
    return home


def engines(client: httpx.Client) -> dict[tuple[str, str], dict[str, Any]]:
    """Return the engines of lenet5 in the answer of /models, by runtime and precision."""
    (model,) = client.get("/models/lenet5").json()["models"]
    return {(engine["runtime"], engine["precision"]): engine for engine in model["engines"]}


def test_the_catalogue_lists_engines_and_the_fastest_faithful_one_serves(home: Path) -> None:
    with serving(BENTOML_HOME=str(home)) as (client, _):
        by_engine = engines(client)
        assert by_engine.keys() >= set(product(("openvino", "onnxruntime"), PRECISIONS))
        assert all(by_engine[engine]["fidelity"]["agreement"] >= 0.99 for engine in product(("openvino",), PRECISIONS))
        assert by_engine["openvino", "bf16"]["problem"].startswith(
            "not verified here: python -m engines verify lenet5:"
        )
        problem = by_engine["onnxruntime", "fp32"]["problem"]
        assert problem.startswith("not timed here at batch 8: python -m engines bench lenet5:")
        rates = {
            precision: {row["batch"]: rate(Speed(**row)) for row in by_engine["openvino", precision]["benchmark"]}
            for precision in PRECISIONS
        }
        faithful = [precision for precision in PRECISIONS if not by_engine["openvino", precision]["problem"]]
        assert "fp32" in faithful
        assert INT8_OVERFLOWS or "int8" in faithful
        answer = client.post("/classify?model=lenet5", content=DIGIT.read_bytes()).json()
        assert (answer["runtime"], answer["precision"]) == ("openvino", max(faithful, key=lambda name: rates[name][8]))
        for precision in PRECISIONS:
            answer = client.post(f"/classify?model=lenet5&precision={precision}", content=DIGIT.read_bytes()).json()
            assert (answer["runtime"], answer["precision"]) == ("openvino", precision)
        (latency,) = client.get("/models/lenet5/latency").json()["models"].values()
        assert latency["requests"] == 1 + len(PRECISIONS)
        rows = {(row["runtime"], row["precision"], row["batch"]) for row in latency["benchmark"]}
        assert rows == {("openvino", precision, batch) for precision in PRECISIONS for batch in (1, 8)}


def test_a_running_server_takes_up_records_without_a_failed_request(home: Path, tmp_path: Path) -> None:
    shutil.copytree(home / "models", tmp_path / "models")
    with serving(BENTOML_HOME=str(tmp_path), CONVSERVE_SCAN_S="0.2") as (client, _), constant_load(client) as seen:
        assert classify(client).json()["precision"] == "fp32"
        shutil.copytree(home / "convserve-records", tmp_path / "convserve-records")
        rates: dict[float, str] = {}
        deadline = time.monotonic() + 30
        while (answer := classify(client).json())["precision"] != rates.get(max(rates, default=0)):
            assert time.monotonic() < deadline, (answer, rates)
            rates = {
                rate(Speed(**row)): precision
                for (_, precision), engine in engines(client).items()
                for row in engine["benchmark"]
                if row["batch"] == 8 and not engine["problem"]
            }
            time.sleep(0.1)
        assert "fp32" in rates.values()
        assert set(seen) == {200}


@pytest.mark.parametrize(
    ("runtime", "precision"), [("onnxruntime", "int8"), pytest.param("torch", "fp32", marks=pytest.mark.slow)]
)
def test_an_engine_that_is_asked_for_serves(home: Path, runtime: str, precision: str) -> None:
    with serving(BENTOML_HOME=str(home), CONVSERVE_RUNTIME=runtime, CONVSERVE_PRECISION=precision) as (client, _):
        answer = client.post("/classify?model=lenet5", content=DIGIT.read_bytes()).json()
        assert (answer["runtime"], answer["precision"]) == (runtime, precision)
        assert answer["predictions"][0]["label"] == "7" or (INT8_OVERFLOWS and precision == "int8")


def test_a_request_may_name_a_precision_that_there_is(server: httpx.Client) -> None:
    def ask(precision: str) -> httpx.Response:
        return server.post(f"/classify?model=lenet5&precision={precision}", content=DIGIT.read_bytes())

    assert ask("fp32").json()["precision"] == "fp32"
    missing = ask("int8")
    assert (missing.status_code, missing.json()["code"]) == (409, "no_precision")
    assert missing.json()["detail"].endswith("is published in fp32, bf16, not in int8")
    assert (ask("fp64").status_code, ask("fp64").json()["code"]) == (422, "invalid_parameter")


def test_a_precision_that_was_not_published_is_reported_and_the_server_lives(
    lenet5: PublishedModel,
) -> None:
    with serving(CONVSERVE_PRECISION="int8") as (client, _):
        (model,) = client.get("/models/lenet5").json()["models"]
        assert model["status"] == "failed"
        remedy = "has no int8: python -m training publish CHECKPOINT --precisions fp32,int8"
        assert remedy in model["error"]
        refused = client.post("/classify?model=lenet5", content=DIGIT.read_bytes())
        assert refused.status_code == 503
        assert remedy in refused.json()["detail"]
