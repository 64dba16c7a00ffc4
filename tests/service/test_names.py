"""Tests of names in paths and parameters: a model has the same names on every route."""

from __future__ import annotations

from urllib.parse import quote

import pytest

from engines.published import store
from service.context import ServerContext, make_context
from service.settings import Settings
from tests.service.stubs import StubEngine, client_of, put
from tests.serving import ROOT

pytestmark = pytest.mark.anyio
DIGIT = (ROOT / "docs" / "digit.png").read_bytes()


@pytest.mark.parametrize("encode", [str, lambda name: quote(name, safe="")])
async def test_a_path_takes_every_name_that_a_parameter_takes(
    stub_server: ServerContext, three: list[str], encode: object
) -> None:
    assert callable(encode)
    matching = {"lenet5": three, "lenet5@mnist5k": three[:3], "lenet5@kuzushiji": three[3:], three[1]: three[1:2]}
    async with client_of(stub_server) as client:
        for name, tags in matching.items():
            path = f"/models/{encode(name)}"
            detail = (await client.get(path)).json()
            assert {model["tag"] for model in detail["models"]} == set(tags)
            assert detail["name"] == "lenet5"
            assert (await client.get(f"{path}/latency")).json()["models"].keys() == set(tags)
            complexity = (await client.get(f"{path}/complexity")).json()
            assert complexity["paper"]["macs"]
            assert complexity["models"].keys() <= set(tags)
            answer = await client.post(f"/classify?model={encode(name)}", content=DIGIT)
            assert answer.json()["model"] in tags


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("lenet6", "lenet5"),
        ("lenet5@nosuch", "lenet5@kuzushiji"),
        ("lenet5:mnist5k-00000000", "lenet5:kuzushiji-dddddddd"),
        ("lenet5:mnist5k-aaaaaaaa@mnist5k", "lenet5:kuzushiji-dddddddd"),
    ],
)
async def test_an_unknown_name_is_unknown_on_every_route(stub_server: ServerContext, name: str, near: str) -> None:
    async with client_of(stub_server) as client:
        for path in (f"/models/{name}", f"/models/{name}/complexity", f"/models/{name}/latency"):
            answer = await client.get(path)
            assert (answer.status_code, answer.json()["code"]) == (404, "unknown_model")
            assert answer.json()["near"][0] == near
        answer = await client.post(f"/classify?model={name}", content=DIGIT)
        assert (answer.status_code, answer.json()["code"], answer.json()["near"][0]) == (404, "unknown_model", near)


async def test_a_data_set_without_weights_of_an_architecture_has_no_models(stub_server: ServerContext) -> None:
    async with client_of(stub_server) as client:
        answer = await client.get("/models/senet154@kuzushiji")
        assert (answer.status_code, answer.json()["models"]) == (200, [])


async def test_load_and_unload_take_every_name(three: list[str]) -> None:
    server = make_context(Settings.model_validate({"admin_token": "secret", "runtime": "null"}))
    headers = {"Authorization": "Bearer secret"}
    names = {"lenet5": three[2], "lenet5@kuzushiji": three[3], "lenet5%40mnist5k": three[2], three[0]: three[0]}
    async with client_of(server) as client:
        for name, tag in names.items():
            put(server, tag, StubEngine())
            unloaded = await client.post(f"/models/{name}/unload", headers=headers)
            assert (unloaded.json()["tag"], unloaded.json()["status"]) == (tag, "published")


@pytest.mark.parametrize("path", ["/pareto?dataset=foo", "/classify?model=auto@foo&min_accuracy=0.5"])
async def test_an_unknown_data_set_is_an_error_that_names_the_known_ones(stub_server: ServerContext, path: str) -> None:
    async with client_of(stub_server) as client:
        answer = await client.request("GET" if path.startswith("/pareto") else "POST", path)
    assert (answer.status_code, answer.json()["code"]) == (404, "unknown_dataset")
    assert answer.json()["near"] == ["kuzushiji", "mnist5k"]
    assert "there are kuzushiji, mnist5k" in answer.json()["detail"]


async def test_auto_takes_a_data_set_and_names_those_there_are(three: list[str]) -> None:
    server = make_context(Settings(dataset="fashion"))
    for number, tag in enumerate(three):
        put(server, tag, StubEngine(number), 0.001)
    async with client_of(server) as client:
        answer = await client.post("/classify?model=auto@kuzushiji&min_accuracy=0.5", content=DIGIT)
        assert answer.json()["model"] == three[3]
        answer = await client.post("/classify?model=auto&min_accuracy=0.5", content=DIGIT)
        assert (answer.status_code, answer.json()["code"]) == (409, "no_weights")
        assert answer.json()["near"] == ["auto@kuzushiji", "auto@mnist5k"]
        assert (await client.get("/pareto")).json()["models"] == []


async def test_what_was_just_published_is_found_by_name_without_waiting_for_the_next_scan(
    stub_server: ServerContext, three: list[str]
) -> None:
    folder = store.folder_of(three[1])
    away = folder.rename(folder.parents[1] / "away")
    server = make_context(Settings(runtime="null", scan_s=1000))
    path = f"/models/{three[1]}/latency"
    async with client_of(server) as client:
        assert (await client.get(path)).status_code == 404
        away.rename(folder)
        assert (await client.get(path)).status_code == 404  # the store is read once a second at most
        server.catalog._scanned_at -= 1
        assert (await client.get(path)).json()["models"].keys() == {three[1]}
