"""Tests of the Open Inference Protocol over HTTP, against a server in the process of the tests."""

from __future__ import annotations

import json
import re
from base64 import b64encode
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from service.context import ServerContext, make_context
from service.device import LocalDevice
from service.settings import Settings
from tests.service.stubs import StubEngine, client_of, put
from tests.serving import ROOT

pytestmark = pytest.mark.anyio
DIGIT = (ROOT / "docs" / "digit.png").read_bytes()
HEADER = "Inference-Header-Content-Length"
FILE: dict[str, Any] = {"name": "image", "shape": [1], "datatype": "BYTES", "data": [b64encode(DIGIT).decode()]}
SHAPE = [32, 32, 1]  # of lenet5's pixels
PIXELS: dict[str, Any] = {"name": "pixels", "shape": [1, *SHAPE], "datatype": "UINT8"}
SIZE = 32 * 32


@pytest.fixture
def server(stub_server: ServerContext) -> ServerContext:
    """Return a server that is ready, whose model three[0] answers 0 in 1 predicted ms."""
    assert isinstance(stub_server.device, LocalDevice)
    stub_server.device._loaded = True
    return stub_server


@pytest.fixture
def model(three: list[str]) -> str:
    """Return the path of the model three[0]."""
    name, _, version = three[0].partition(":")
    return f"/v2/models/{name}/versions/{version}"


@pytest.fixture
async def client(server: ServerContext) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(server) as client:
        yield client


def elements(*files: bytes) -> bytes:
    """Return the binary data of a BYTES tensor."""
    return b"".join(len(file).to_bytes(4, "little") + file for file in files)


def binary(tensor: dict[str, Any], raw: bytes, **members: Any) -> tuple[bytes, dict[str, str]]:
    """Return the body and headers of a request whose tensor follows the JSON."""
    tensor = tensor | {"parameters": {"binary_data_size": len(raw)}}
    text = json.dumps({"inputs": [tensor], **members}).encode()
    return text + raw, {HEADER: str(len(text))}


def outputs(answer: httpx.Response) -> dict[str, Any]:
    """Return the outputs of an answer by name: arrays, or lists of texts."""
    size = int(answer.headers.get(HEADER, len(answer.content)))
    message, raw = json.loads(answer.content[:size]), answer.content[size:]
    found: dict[str, Any] = {}
    for output in message["outputs"]:
        if "data" in output:
            values: Any = output["data"]
        else:
            length = output["parameters"]["binary_data_size"]
            values, raw = np.frombuffer(raw[:length], "<f4"), raw[length:]
        found[output["name"]] = np.array(values).reshape(output["shape"])
    assert not raw
    return found


async def test_the_server_says_what_it_is(client: httpx.AsyncClient) -> None:
    assert (await client.get("/v2/health/live")).json() == {"live": True}
    assert (await client.get("/v2/health/ready")).json() == {"ready": True}
    about = (await client.get("/v2")).json()
    assert about["name"] == "convserve"
    assert {"binary_tensor_data", "classification", "model_repository", "statistics"} < set(about["extensions"])
    project = (ROOT / "pyproject.toml").read_text()
    assert f'\nversion = "{about["version"]}"\n' in project


async def test_a_model_tells_its_versions_inputs_and_outputs(
    client: httpx.AsyncClient, model: str, three: list[str]
) -> None:
    about = (await client.get(model)).json()
    assert (about["name"], about["platform"]) == ("lenet5", "onnx_onnxv1")
    assert set(about["versions"]) >= {tag.partition(":")[2] for tag in three}
    assert about["inputs"] == [
        {"name": "pixels", "datatype": "UINT8", "shape": [-1, *SHAPE]},
        {"name": "image", "datatype": "BYTES", "shape": [-1]},
    ]
    assert [(output["name"], output["shape"]) for output in about["outputs"]] == [
        ("logits", [-1, 10]),
        ("probabilities", [-1, 10]),
    ]
    config = (await client.get(f"{model}/config")).json()
    assert (config["max_batch_size"], config["dynamic_batching"]) == (64, {})
    assert [(tensor["name"], tensor["dims"], tensor["optional"]) for tensor in config["input"]] == [
        ("pixels", SHAPE, True),
        ("image", [1], True),
    ]
    for name in ("lenet5", "lenet5@mnist5k", three[0]):
        assert (await client.get(f"/v2/models/{name}")).json()["name"] == "lenet5"


async def test_a_file_is_classified_as_by_classify(client: httpx.AsyncClient, model: str, three: list[str]) -> None:
    answer = await client.post(f"{model}/infer", json={"id": "42", "inputs": [FILE]})
    message = answer.json()
    assert {name: message[name] for name in ("model_name", "model_version", "id", "parameters")} == {
        "model_name": "lenet5",
        "model_version": three[0].partition(":")[2],
        "id": "42",
        "parameters": {"runtime": "stub", "precision": "fp32"},
    }
    found = outputs(answer)
    assert found["logits"].tolist() == [[1, *[0] * 9]]
    predictions = (await client.post(f"/classify?model={three[0]}&top_k=10", content=DIGIT)).json()["predictions"]
    expected = [row["probability"] for row in sorted(predictions, key=lambda row: row["index"])]
    assert found["probabilities"][0].tolist() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("shape", [[3], [3, 1]])
async def test_files_come_as_binary_data_too(client: httpx.AsyncClient, model: str, shape: list[int]) -> None:
    tensor = {"name": "image", "datatype": "BYTES", "shape": shape}
    body, headers = binary(tensor, elements(*[DIGIT] * 3), parameters={"binary_data_output": True})
    answer = await client.post(f"{model}/infer", content=body, headers=headers)
    assert answer.headers["content-type"] == "application/octet-stream"
    assert outputs(answer)["logits"].tolist() == [[1, *[0] * 9]] * 3
    nested = FILE | {"shape": shape, "data": [[text] if len(shape) == 2 else text for text in FILE["data"] * 3]}
    answer = await client.post(f"{model}/infer", json={"inputs": [nested]})
    assert outputs(answer)["logits"].shape == (3, 10)


async def test_pixels_come_as_numbers_flat_or_nested_or_as_binary_data(client: httpx.AsyncClient, model: str) -> None:
    pixels = np.arange(2 * SIZE).astype(np.uint8).reshape(2, *SHAPE)
    tensor = PIXELS | {"shape": [2, *SHAPE]}
    body, headers = binary(tensor, pixels.tobytes())
    answers = [await client.post(f"{model}/infer", content=body, headers=headers)]
    for data in (pixels.tolist(), pixels.ravel().tolist()):
        answers.append(await client.post(f"{model}/infer", json={"inputs": [tensor | {"data": data}]}))
    assert [outputs(answer)["logits"].tolist() for answer in answers] == [[[1, *[0] * 9]] * 2] * 3


async def test_an_output_is_as_each_request_wants_it(client: httpx.AsyncClient, model: str) -> None:
    wanted = [
        {"name": "probabilities", "parameters": {"classification": 2, "binary_data": False}},
        {"name": "logits", "parameters": {"binary_data": True}},
    ]
    request = {"inputs": [FILE], "outputs": wanted, "parameters": {"binary_data_output": True}}
    found = outputs(await client.post(f"{model}/infer", json=request))
    assert list(found) == ["probabilities", "logits"]
    first, second = found["probabilities"][0].tolist()
    value, index, label = first.split(":")
    assert float(value) == pytest.approx(np.e / (np.e + 9))
    assert (index, label) == ("0", "0")
    assert second.split(":")[1:] == ["1", "1"]
    assert found["logits"].tolist() == [[1, *[0] * 9]]
    request = {"inputs": [FILE], "outputs": [{"name": "logits", "parameters": {"classification": 99}}]}
    assert outputs(await client.post(f"{model}/infer", json=request))["logits"].shape == (1, 10)


async def test_nulls_and_parameters_of_others_are_ignored(client: httpx.AsyncClient, model: str) -> None:
    request: dict[str, Any] = {
        "id": None,
        "parameters": {"priority": 1, "triton_x": 1, "timeout": None},
        "outputs": None,
        "x": 1,
    }
    request["inputs"] = [FILE | {"parameters": {"content_type": "base64", "binary_data_size": None}}]
    assert (await client.post(f"{model}/infer", json=request)).status_code == 200


async def test_statistics_are_of_images_by_every_route(client: httpx.AsyncClient, model: str, three: list[str]) -> None:
    (none,) = (await client.get(f"{model}/stats")).json()["model_stats"]
    assert (none["inference_count"], none["last_inference"]) == (0, 0)
    await client.post(f"/classify?model={three[0]}", content=DIGIT)
    body, headers = binary({"name": "image", "datatype": "BYTES", "shape": [2]}, elements(DIGIT, b"no picture"))
    assert (await client.post(f"{model}/infer", content=body, headers=headers)).status_code == 415
    (found,) = (await client.get(f"{model}/stats")).json()["model_stats"]
    assert (found["name"], found["version"]) == ("lenet5", three[0].partition(":")[2])
    assert (found["inference_count"], found["execution_count"], found["last_inference"] > 1e12) == (2, 2, True)
    stats = found["inference_stats"]
    assert {name: stats[name]["count"] for name in ("success", "fail", "queue", "compute_input", "cache_hit")} == {
        "success": 2,
        "fail": 1,
        "queue": 2,
        "compute_input": 2,
        "cache_hit": 0,
    }
    parts = sum(stats[name]["ns"] for name in ("queue", "compute_input", "compute_infer"))
    assert stats["success"]["ns"] == parts > 0
    assert len((await client.get("/v2/models/stats")).json()["model_stats"]) >= len(three)
    metrics = (await client.get("/metrics")).text
    assert f'convserve_images_total{{model="{three[0]}",outcome="unsupported_format"}} 1.0' in metrics
    assert 'route="/v2/models/{name}/versions/{version}/infer",status="415"}' in metrics


async def test_models_are_listed_loaded_and_unloaded(server: ServerContext, model: str, three: list[str]) -> None:
    settings = Settings.model_validate({"admin_token": "root"})
    name, _, version = three[0].partition(":")
    path = f"/v2/repository/models/{three[0]}"
    async with client_of(replace(server, settings=settings)) as client:
        for wrong in ({}, {"Authorization": "Bearer x"}):
            refused = await client.post(f"{path}/unload", headers=wrong)
            assert (refused.status_code, list(refused.json())) == (401, ["error"])
        client.headers["Authorization"] = "Bearer root"
        assert (await client.get(f"{model}/ready")).json() == {"name": "lenet5", "ready": True}
        parameters = {"parameters": {"unload_dependents": False}}
        assert (await client.post(f"{path}/unload", json=parameters)).status_code == 200
        assert "not loaded" in (await client.get(f"{model}/ready")).json()["error"]
        listed = {entry["version"]: entry for entry in (await client.post("/v2/repository/index")).json()}
        assert listed[version]["state"] == "UNAVAILABLE"
        assert listed[three[1].partition(":")[2]] == {
            "name": name,
            "version": three[1].partition(":")[2],
            "state": "READY",
            "reason": "",
        }
        ready = (await client.post("/v2/repository/index", json={"ready": True})).json()
        assert version not in {entry["version"] for entry in ready}
        sent = await client.post(f"{path}/load", json={"parameters": {"config": "{}"}})
        assert (sent.status_code, "publish the model" in sent.json()["error"]) == (400, True)
        assert (await client.post("/v2/repository/index", content=b"[")).status_code == 400


class BrokenEngine(StubEngine):
    """Engine that computes NaN."""

    def infer(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        return np.full((len(pixels), 10), np.nan, np.float32)


@pytest.mark.parametrize("path", ["/classify?model=TAG", "/compare?models=TAG", "/explain?model=TAG", "/v2"])
async def test_what_json_cannot_hold_is_an_error_in_words(
    stub_server: ServerContext, three: list[str], path: str
) -> None:
    put(stub_server, three[0], BrokenEngine())
    async with client_of(stub_server) as client:
        if path == "/v2":
            answer = await client.post(f"/v2/models/{three[0]}/infer", json={"inputs": [FILE]})
        else:
            answer = await client.post(path.replace("TAG", three[0]), content=DIGIT)
    assert (answer.status_code, "stub in fp32 computed infinity or NaN" in answer.text) == (500, True)


async def test_keys_are_needed_but_for_the_health(three: list[str], model: str) -> None:
    server = make_context(Settings.model_validate({"api_keys": ["one"]}))
    put(server, three[0], StubEngine())
    async with client_of(server) as client:
        assert (await client.get("/v2/health/live")).status_code == 200
        loading = await client.get("/v2/health/ready")
        assert (loading.status_code, loading.json()) == (503, {"error": "loading models"})
        for path in ("/v2", model, "/v2/models/stats"):
            refused = await client.get(path)
            assert (refused.status_code, list(refused.json())) == (401, ["error"])
        assert (await client.post(f"{model}/infer", json={"inputs": [FILE]})).status_code == 401
        key = {"X-API-Key": "one"}
        assert (await client.post(f"{model}/infer", json={"inputs": [FILE]}, headers=key)).status_code == 200


@pytest.mark.parametrize("query", ["", "?x=1"])
@pytest.mark.parametrize("body", [{"inputs": [FILE]}, {"inputs": []}])
async def test_the_short_way_infers_as_fastapi_would(
    client: httpx.AsyncClient, model: str, monkeypatch: pytest.MonkeyPatch, body: dict[str, Any], query: str
) -> None:
    answers = []
    for pattern in ("/v2/models/([^/]+)(?:/versions/([^/]+))?/infer", "/elsewhere"):
        monkeypatch.setattr("service.fast_path.INFER", re.compile(pattern))
        answer = await client.post(f"{model}/infer{query}", json=body)
        answers.append((answer.status_code, answer.headers.keys(), answer.json()))
    assert answers[0] == answers[1]
