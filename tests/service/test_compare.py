"""Tests of /compare: a model that cannot answer has a problem in its row, and the other models answer."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from starlette.types import Message

from engines.published.store import PublishedModel
from service.admission import EngineQueue
from service.application import create_application
from service.context import ServerContext, make_context
from service.loading import Slot
from service.settings import Settings
from tests.service.stubs import StubEngine, client_of, put
from tests.serving import ROOT

pytestmark = pytest.mark.anyio
DIGIT = (ROOT / "docs" / "digit.png").read_bytes()


async def compare(client: httpx.AsyncClient, *models: str, **parameters: Any) -> httpx.Response:
    return await client.post("/compare", params={"models": ",".join(models), **parameters}, content=DIGIT)


def codes(answer: httpx.Response) -> list[str]:
    """Return each row's class, or the code of its problem."""
    rows = answer.json()["models"]
    return [row["problem"]["code"] if "problem" in row else row["answer"]["predictions"][0]["label"] for row in rows]


async def test_compare_decodes_once_and_one_that_fails_fails_alone(
    stub_server: ServerContext, three: list[str]
) -> None:
    server = stub_server
    put(server, three[1], StubEngine(error=RuntimeError("device lost")))
    async with client_of(server) as client:
        compared = (await client.post("/compare", params={"models": ",".join(three[:3])}, content=DIGIT)).json()
        assert not compared["agree"]
        rows = {row["model"]: row for row in compared["models"]}
        labels = {tag: row["answer"]["predictions"][0]["label"] for tag, row in rows.items() if "answer" in row}
        assert labels == {three[0]: "0", three[2]: "1"}
        assert rows[three[1]]["problem"]["code"] == "internal_error"
        assert 'outcome="internal_error"} 1.0' in (await client.get("/metrics")).text
        server.catalog.models[three[1]].slots[None] = Slot()  # its files are not the published ones
        unloadable = (await client.post("/compare", params={"models": ",".join(three[:2])}, content=DIGIT)).json()
        assert [row.get("problem", {}).get("code") for row in unloadable["models"]] == [None, "not_loadable"]
        assert (rows[three[2]]["top1"], rows[three[2]]["macs"]) == (0.95, 325_680)
        put(server, three[1], StubEngine(1))
        both = (await client.post("/compare", params={"models": ",".join(three[1:3])}, content=DIGIT)).json()
        assert both["agree"]
        names = ",".join(f"m{number}" for number in range(300))
        assert (await client.post("/compare", params={"models": names}, content=DIGIT)).status_code == 422
        assert (await client.post("/compare", params={"models": "nosuch"}, content=DIGIT)).status_code == 404
        assert (await client.post("/compare", params={"models": "lenet5"}, content=b"no")).status_code == 415


async def test_compare_of_models_that_cannot_be_loaded_reports_each(lenet5: PublishedModel, three: list[str]) -> None:
    server = make_context(Settings(scaled_jpeg=True))
    for tag in three[:2]:
        server.catalog.models[tag].slots[None] = Slot()  # its files are not the published ones
    async with client_of(server) as client:
        answer = await client.post("/compare", params={"models": ",".join(three[:2])}, content=DIGIT)
    assert (answer.status_code, answer.json()["code"]) == (503, "not_loadable")
    assert int(answer.headers["Retry-After"]) >= 1
    assert codes(answer) == ["not_loadable"] * 2


async def test_names_without_weights_have_a_row_and_the_others_answer(
    stub_server: ServerContext, three: list[str]
) -> None:
    names = [three[0], "bogus", "senet154", "lenet5:mnist5k-00000000", three[1], "lenet5@imagenet", "bogus"]
    async with client_of(stub_server) as client:
        answer = await compare(client, *names, top_k=1)
        expected = ["0", "unknown_model", "no_weights", "unknown_model", "1", "unknown_model"]
        assert (answer.status_code, codes(answer)) == (200, expected)
        rows = answer.json()["models"]
        assert [row["model"] for row in rows] == names[:6]
        assert rows[1].keys() == {"model", "problem"}
        assert rows[2]["problem"]["detail"].startswith("senet154 has no published weights")
        metrics = (await client.get("/metrics")).text
        assert 'convserve_images_total{model="",outcome="unknown_model"} 3.0' in metrics
        assert "bogus" not in metrics


async def test_if_no_model_answers_the_request_fails_with_all_rows(
    stub_server: ServerContext, three: list[str]
) -> None:
    queue = put(stub_server, three[0], StubEngine(), 0.1)
    queue.decoding = 20
    async with client_of(stub_server) as client:
        unknown = await compare(client, "bogus", "lenet")
        assert (unknown.status_code, unknown.json()["code"], codes(unknown)) == (
            404,
            "unknown_model",
            ["unknown_model"] * 2,
        )
        assert unknown.headers["content-type"] == "application/problem+json"
        weights = await compare(client, "bogus", "senet154")
        assert (weights.status_code, weights.json()["code"]) == (409, "no_weights")
        assert "command" in weights.json()
        full = await compare(client, "bogus", three[0], deadline_ms=500)
        assert (full.status_code, codes(full)) == (503, ["unknown_model", "overloaded"])
        assert full.headers["Retry-After"]
        hopeless = await compare(client, three[0], "bogus", deadline_ms=50)
        assert (hopeless.status_code, hopeless.json()["code"]) == (422, "impossible_deadline")
        assert 'outcome="unknown_model"} 1.0' in (await client.get("/metrics")).text


async def test_a_model_that_cannot_meet_the_deadline_fails_alone(stub_server: ServerContext, three: list[str]) -> None:
    put(stub_server, three[1], StubEngine(1), 0.1).decoding = 20  # has a queue
    put(stub_server, three[2], StubEngine(1), 5.0)  # is too slow even alone
    async with client_of(stub_server) as client:
        answer = await compare(client, *three[:3], deadline_ms=500)
        assert (answer.status_code, codes(answer)) == (200, ["0", "overloaded", "impossible_deadline"])


class SlowEngine(StubEngine):
    """Engine that takes longer than it was predicted to take."""

    def infer(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        time.sleep(1.0)
        return super().infer(pixels)


async def test_a_model_that_misses_the_deadline_fails_alone(stub_server: ServerContext, three: list[str]) -> None:
    put(stub_server, three[1], SlowEngine(1), 0.001)
    async with client_of(stub_server) as client:
        answer = await compare(client, three[0], three[1], deadline_ms=500)
        assert (answer.status_code, codes(answer)) == (200, ["0", "timeout"])


async def test_a_client_that_goes_away_ends_the_comparison(stub_server: ServerContext, three: list[str]) -> None:
    for tag in three[:2]:
        put(stub_server, tag, SlowEngine(1), 0.001)
    sent: list[Message] = []
    messages: list[Message] = [{"type": "http.request", "body": DIGIT}, {"type": "http.disconnect"}]

    async def receive() -> Message:
        return messages.pop(0)

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/compare", "headers": [], "http_version": "1.1"}
    query = f"models={three[0]},{three[1]}".encode()
    started = time.monotonic()
    await create_application(stub_server)(scope | {"query_string": query}, receive, send)
    assert time.monotonic() - started < 0.9
    assert b'"code":"disconnected"' in sent[1]["body"]


async def test_a_model_that_is_still_being_loaded_does_not_keep_the_others(
    stub_server: ServerContext, three: list[str]
) -> None:
    async def load() -> EngineQueue:
        await asyncio.sleep(2)
        raise AssertionError("nobody waits so long")

    loading = asyncio.create_task(load())
    stub_server.catalog.models[three[1]].slots[None] = Slot(status="loading", loading=loading)
    async with client_of(stub_server) as client:
        answer = await compare(client, three[1], three[0], "bogus", deadline_ms=400)
        assert (answer.status_code, codes(answer)) == (200, ["timeout", "0", "unknown_model"])
    loading.cancel()


@pytest.mark.parametrize("parameters", [{"models": "lenet5,,"}, {"models": ""}, {}, {"models": "bogus", "top_k": 0}])
async def test_a_wrong_parameter_fails_the_whole_request(
    stub_server: ServerContext, parameters: dict[str, str]
) -> None:
    async with client_of(stub_server) as client:
        answer = await client.post("/compare", params=parameters, content=DIGIT)
        assert (answer.status_code, answer.json()["code"]) == (422, "invalid_parameter")
