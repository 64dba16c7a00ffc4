"""Tests of API keys, bearer tokens, HEAD, and unknown query parameters, on every route."""

from __future__ import annotations

import httpx
import pytest
from pydantic import ValidationError

from engines.published.store import PublishedModel
from service.context import ServerContext, make_context
from service.settings import Settings
from tests.service.stubs import StubEngine, client_of, put
from tests.serving import ROOT

pytestmark = pytest.mark.anyio
DIGIT = (ROOT / "docs" / "digit.png").read_bytes()
GET = ["/models", "/models/lenet5", "/models/lenet5/complexity", "/models/lenet5/latency", "/pareto", "/metrics"]
POST = ["/classify?model=lenet5", "/compare?models=lenet5", "/explain?model=lenet5"]


def served(lenet5: PublishedModel, **settings: object) -> ServerContext:
    """Return a server of the published lenet5, with an engine that answers 0."""
    server = make_context(Settings.model_validate(settings))
    put(server, lenet5.manifest.tag, StubEngine())
    return server


async def statuses(client: httpx.AsyncClient, **headers: str) -> set[int]:
    """Return the statuses of every route that needs a key."""
    answers = [await client.get(path, headers=headers) for path in GET]
    answers += [await client.post(path, content=DIGIT, headers=headers) for path in POST]
    for answer in answers:
        assert answer.status_code != 401 or answer.headers["WWW-Authenticate"] == "Bearer"
    return {answer.status_code for answer in answers}


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"X-API-Key": "three"}, 401),
        ({"X-API-Key": ""}, 401),
        ({"Authorization": "Bearer three"}, 401),
        ({"Authorization": "Bearer "}, 401),
        ({"Authorization": "Basic two"}, 401),
        ({"Authorization": "two"}, 401),
        ({"X-API-Key": "two"}, 200),
        ({"Authorization": "Bearer two"}, 200),
        ({"Authorization": "bearer  two "}, 200),
        ({"Authorization": "Bearer root"}, 200),
        ({"X-API-Key": "root"}, 200),
        ({"X-API-Key": "two", "Authorization": "Bearer three"}, 200),
    ],
)
async def test_a_key_is_a_header_or_a_bearer_token_on_every_route(
    lenet5: PublishedModel, headers: dict[str, str], status: int
) -> None:
    async with client_of(served(lenet5, api_keys=["one", "two"], admin_token="root")) as client:
        assert await statuses(client, **headers) == {status}
        assert (await client.get("/docs")).status_code == (await client.get("/openapi.json")).status_code == 200


async def test_the_admins_token_loads_and_unloads(lenet5: PublishedModel) -> None:
    async with client_of(served(lenet5, api_keys=["two"], admin_token="root")) as client:
        for headers in ({"X-API-Key": "two"}, {"X-API-Key": "two", "Authorization": "Bearer x"}):
            assert (await client.post("/models/lenet5/unload", headers=headers)).status_code == 401
        answer = await client.post("/models/lenet5/unload", headers={"Authorization": "Bearer root"})
        assert answer.json()["status"] == "published"
    with pytest.raises(ValidationError):
        Settings.model_validate({"api_keys": [""]})
    async with client_of(make_context(Settings())) as client:
        response = await client.post("/models/lenet5/load", headers={"Authorization": "Bearer "})
        assert (response.status_code, response.json()["code"]) == (403, "admin_off")


@pytest.mark.parametrize("public", [False, True])
async def test_metrics_may_be_public(lenet5: PublishedModel, public: bool) -> None:
    async with client_of(served(lenet5, api_keys=["two"], metrics_public=public)) as client:
        assert (await client.get("/metrics")).status_code == (200 if public else 401)
        assert (await client.get("/models")).status_code == 401


async def test_openapi_names_both_ways_to_send_a_key(lenet5: PublishedModel) -> None:
    async with client_of(served(lenet5, api_keys=["two"])) as client:
        schemes = (await client.get("/openapi.json")).json()["components"]["securitySchemes"]
    assert {scheme["type"] for scheme in schemes.values()} == {"apiKey", "http"}


@pytest.mark.parametrize("path", ["/", "/docs", "/openapi.json", *GET, "/pareto?dataset=mnist5k", "/nosuch"])
async def test_head_answers_as_get_without_a_body(lenet5: PublishedModel, path: str) -> None:
    async with client_of(served(lenet5)) as client:
        got, head = [await client.request(method, path) for method in ("GET", "HEAD")]
        assert (head.status_code, head.content) == (got.status_code, b"")
        assert head.headers.get("content-type") == got.headers.get("content-type")
        if path != "/metrics":  # which counts its own requests
            assert head.headers["content-length"] == got.headers["content-length"]
        metrics = (await client.get("/metrics")).text
        assert 'method="HEAD"' in metrics


async def test_a_wrong_method_is_told_the_right_ones(lenet5: PublishedModel) -> None:
    async with client_of(served(lenet5)) as client:
        for method in ("GET", "HEAD"):
            answer = await client.request(method, "/classify?model=lenet5")
            assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
        for path in ("/models", "/metrics", "/", "/docs"):
            answer = await client.post(path)
            assert (answer.status_code, set(answer.headers["allow"].split(", "))) == (405, {"GET", "HEAD"})


@pytest.mark.parametrize(
    ("method", "path", "near"),
    [
        ("POST", "/classify?model=lenet5&topk=1", ["top_k"]),
        ("POST", "/classify?Model=lenet5", ["model"]),
        ("POST", "/classify?model=lenet5&topK=1", ["top_k"]),
        ("POST", "/classify?model=lenet5&max_latency=1", ["max_latency_ms"]),
        ("POST", "/classify?model=lenet5&x=1", []),
        ("POST", "/compare?models=lenet5&deadline=5", ["deadline_ms"]),
        ("POST", "/compare?model=lenet5", ["models"]),
        ("GET", "/pareto?data_set=mnist5k", ["dataset"]),
        ("HEAD", "/pareto?data_set=mnist5k", []),
        *(("GET", f"{path}?nosuch=1", []) for path in GET),
        ("POST", "/models/lenet5/load?nosuch=1", []),
    ],
)
async def test_an_unknown_parameter_is_refused_with_a_near_name(
    lenet5: PublishedModel, method: str, path: str, near: list[str]
) -> None:
    async with client_of(served(lenet5, admin_token="root")) as client:
        answer = await client.request(method, path, content=DIGIT, headers={"Authorization": "Bearer root"})
    assert answer.status_code == 422
    if method != "HEAD":
        problem = answer.json()
        assert (problem["code"], problem["near"]) == ("invalid_parameter", near)
        assert "there is no such parameter" in problem["detail"]
        assert not near or near[0] in problem["detail"]


async def test_an_unknown_parameter_of_any_length_is_told_in_short(lenet5: PublishedModel) -> None:
    async with client_of(served(lenet5)) as client:
        answer = await client.post(f"/classify?{'x' * 5000}=1", content=DIGIT)
    assert (answer.status_code, len(answer.content) < 500) == (422, True)
    assert "model, top_k" in answer.json()["detail"]
