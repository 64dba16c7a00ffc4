"""Tests of the routes with slow, full and failing engines; of `auto` and logs."""

from __future__ import annotations

import asyncio
import errno
import io
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import datetime
from typing import Any

import httpx
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from engines.published import manifest, store
from engines.published.store import PublishedModel
from service.application import create_application
from service.context import ServerContext, make_context
from service.settings import Settings
from tests.service.stubs import StubEngine, client_of, put
from tests.serving import ROOT

pytestmark = pytest.mark.anyio
DIGIT = (ROOT / "docs" / "digit.png").read_bytes()


@pytest.fixture
def server(stub_server: ServerContext) -> ServerContext:
    return stub_server


async def test_an_engine_that_fails_is_a_problem_and_counted(server: ServerContext, three: list[str]) -> None:
    put(server, three[0], StubEngine(error=RuntimeError("device lost")))
    async with client_of(server) as client:
        response = await client.post(f"/classify?model={three[0]}", content=DIGIT)
        assert response.headers["content-type"] == "application/problem+json"
        assert (response.status_code, response.json()["code"]) == (500, "internal_error")
        assert "device lost" not in response.text
        assert response.headers["x-request-id"]
        assert 'outcome="internal_error"} 1.0' in (await client.get("/metrics")).text


async def test_a_deadline_that_cannot_be_met_is_refused_before_the_body_is_read(
    server: ServerContext, three: list[str]
) -> None:
    queue = put(server, three[0], StubEngine(), 0.1)
    queue.decoding = 20
    read = []

    async def body() -> AsyncIterator[bytes]:
        read.append(DIGIT)
        yield DIGIT

    async with client_of(server) as client:
        response = await client.post(f"/classify?model={three[0]}&deadline_ms=500", content=body())
        problem = response.json()
        assert (response.status_code, problem["code"]) == (503, "overloaded")
        assert problem["queue_depth"] == 20
        assert problem["retry_after_ms"] == pytest.approx(1600, abs=50)
        assert response.headers["retry-after"] == "2"
        assert not read
        hopeless = await client.post(f"/classify?model={three[0]}&deadline_ms=50", content=DIGIT)
        assert (hopeless.status_code, hopeless.json()["code"]) == (422, "impossible_deadline")


async def test_auto_takes_the_most_accurate_in_the_budget_at_this_moments_load(
    server: ServerContext, three: list[str]
) -> None:
    async with client_of(server) as client:

        async def ask(**parameters: Any) -> httpx.Response:
            return await client.post("/classify", params={"model": "auto", **parameters}, content=DIGIT)

        assert (await ask(max_latency_ms=200)).json()["model"] == three[2]
        assert (await ask(max_latency_ms=50)).json()["model"] == three[1]
        assert (await ask(min_accuracy=0.85)).json()["model"] == three[1]
        chosen = (await ask(max_latency_ms=50, min_accuracy=0.85)).json()["choice"]
        assert [row["model"] for row in chosen["front"]] == three[:3]
        assert chosen["reason"].startswith("the most accurate, 90.0%, of the models expected within 50 ms")
        queue = server.catalog.models[three[1]].chosen.queue
        assert queue
        with server.scheduler.admit(queue, asyncio.get_running_loop().time() + 100):
            queue.decoding += 10  # the second has a queue now
            assert (await ask(max_latency_ms=50)).json()["model"] == three[0]
            full = await ask(max_latency_ms=50, min_accuracy=0.85)
            assert (full.status_code, full.json()["code"]) == (503, "overloaded")
            queue.decoding -= 10
        assert (await ask(model="auto@kuzushiji", max_latency_ms=5000)).json()["model"] == three[3]
        for impossible in (
            {},
            {"max_latency_ms": 0.0001},
            {"min_accuracy": 0.97},
            {"model": "lenet5", "min_accuracy": 0},
        ):
            assert (await ask(**impossible)).status_code == 422
        assert (await ask(model="auto@nosuch", min_accuracy=0)).json()["code"] == "unknown_dataset"


async def test_the_front_has_what_nothing_beats(server: ServerContext, three: list[str]) -> None:
    put(server, three[1], StubEngine(), 0.5)  # slower than the third, and less accurate
    async with client_of(server) as client:
        pareto = (await client.get("/pareto")).json()
        rows = {row["model"]: row for row in pareto["models"]}
        assert pareto["dataset"] == "mnist5k"
        assert rows.keys() == set(three[:3])
        assert {tag for tag in three[:3] if "latency" in rows[tag]["front"]} == {three[0], three[2]}
        assert {tag for tag in three[:3] if "macs" in rows[tag]["front"]} == {three[2]}  # all three have the same MACs
        assert rows[three[1]]["alone_ms"] == 500
        assert (await client.get("/pareto?dataset=nosuch")).json()["code"] == "unknown_dataset"


@pytest.mark.parametrize(
    ("key", "query"),
    [
        (None, "model=TAG"),
        (None, "model=TAG&top_k=3&top_k=2"),
        (None, "model=TAG&topk=1"),
        (None, "unheard_of=1&top_k=0"),
        (None, "model=TAG&=1&"),
        (None, "model=%54AG&top_k=%31"),
        (None, "model=auto&min_accuracy=0.9&max_latency_ms=50"),
        (None, "model=lenet%FF"),
        (None, ""),
        (None, "top_k=2"),
        (None, "model="),
        (None, "model=TAG&top_k="),
        (None, "model=TAG&top_k=0&deadline_ms=-1"),
        (None, "model=TAG&precision=fp8"),
        (None, "model=TAG&max_latency_ms=nan&min_accuracy=1.1"),
        (None, "model=TAG;top_k=2"),
        ("one", "model=TAG"),
        ("three", "model=TAG"),
        ("three", "top_k=0"),
        ("three", "topk=0"),
    ],
)
async def test_the_short_way_answers_as_fastapi_would(
    three: list[str], monkeypatch: pytest.MonkeyPatch, key: str | None, query: str
) -> None:
    settings = Settings.model_validate({"api_keys": ["one", "two"]}) if key else Settings()
    server = make_context(settings)
    put(server, three[0], StubEngine())
    url = f"/classify?{query.replace('TAG', three[0])}"
    headers = {"X-API-Key": key} if key else {}
    answers = []
    async with client_of(server) as client:
        for path in ("/classify", "/elsewhere"):
            monkeypatch.setattr("service.fast_path.PATH", path)
            response = await client.post(url, content=DIGIT, headers=headers)
            fields = {name: value for name, value in response.json().items() if name not in {"timing_ms", "choice"}}
            kind = response.headers["content-type"]
            answers.append((response.status_code, kind, response.headers.keys(), fields))
    assert answers[0] == answers[1]


async def test_requests_have_ids_and_routes_are_counted_as_templates(server: ServerContext) -> None:
    async with client_of(server) as client:
        assert (await client.get("/models/lenet5", headers={"X-Request-ID": "abc-1"})).headers[
            "x-request-id"
        ] == "abc-1"
        strange = await client.get("/models/lenet5", headers={"X-Request-ID": 'no"such id'})
        assert len(strange.headers["x-request-id"]) == 32
        await client.request("STRANGE", "/models/lenet5")
        text = (await client.get("/metrics")).text
        assert 'convserve_request_duration_seconds_count{method="GET",route="/models/{name}",status="200"} 2.0' in text
        assert "STRANGE" not in text


class Full(io.StringIO):
    """File on a disk that is full."""

    def flush(self) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")


async def test_each_request_is_a_line_of_json_and_answered_if_it_cannot_be_written(
    server: ServerContext, three: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with client_of(server) as client:
        await client.post(f"/classify?model={three[0]}", content=DIGIT, headers={"X-Request-ID": "abc-1"})
        await client.post("/classify?model=nosuch", content=DIGIT)
        good, bad = map(json.loads, capsys.readouterr().out.splitlines())
        expected = {"request_id": "abc-1", "method": "POST", "route": "/classify", "status": 200, "code": None}
        assert good == good | expected | {"model": three[0]}
        assert bad == bad | {"status": 404, "code": "unknown_model", "model": None}
        assert good["ms"] > 0
        assert datetime.fromisoformat(good["timestamp"]) <= datetime.fromisoformat(bad["timestamp"])
    monkeypatch.setattr("sys.stdout", Full())
    raising = httpx.ASGITransport(create_application(server))  # an error while logging would be raised after the answer
    async with httpx.AsyncClient(transport=raising, base_url="http://test") as client:
        assert (await client.get("/models/lenet5")).status_code == 200


async def test_stages_are_spans_of_the_request(server: ServerContext, three: list[str]) -> None:
    spans = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    tracer = provider.get_tracer("test")
    async with client_of(replace(server, tracer=tracer)) as client:
        with tracer.start_as_current_span("request") as request:
            await client.post(f"/classify?model={three[0]}", content=DIGIT)
    finished = spans.get_finished_spans()
    assert [span.name for span in finished] == ["decode", "queue", "inference", "request"]
    assert {span.parent.span_id for span in finished[:3] if span.parent} == {request.get_span_context().span_id}


async def test_wrong_parameters_are_counted_without_their_text(server: ServerContext) -> None:
    async with client_of(server) as client:
        await client.post("/classify?model=lenet5&top_k=x", content=DIGIT)
        await client.post("/classify?model=nosuch", content=DIGIT)
        metrics = (await client.get("/metrics")).text
        assert 'convserve_images_total{model="",outcome="invalid_parameter"} 1.0' in metrics
        assert 'convserve_images_total{model="",outcome="unknown_model"} 1.0' in metrics


async def test_new_versions_are_taken_up_once_they_are_loaded(
    server: ServerContext, three: list[str], lenet5: PublishedModel
) -> None:
    for tag in three:
        server.catalog.models[tag].proven = True
    newest = store.folder_of(three[2])
    hidden = newest.with_name("hidden")
    newest.rename(hidden)
    server.catalog.scan()
    assert server.catalog.find("lenet5").manifest.tag == three[1]
    hidden.rename(newest)
    server.catalog.scan()
    assert server.catalog.find("lenet5").manifest.tag == three[1]  # the newest is not loaded yet
    (newest / manifest.WEIGHTS).write_bytes(b"broken")
    await server.catalog.load_all()
    assert server.catalog.models[three[2]].chosen.status == "failed"
    assert server.catalog.find("lenet5").manifest.tag == three[1]
    server.catalog.models[three[2]].proven = True
    assert server.catalog.find("lenet5").manifest.tag == three[2]
