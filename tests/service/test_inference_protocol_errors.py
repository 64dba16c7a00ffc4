"""Tests of requests of the Open Inference Protocol that are wrong, late or refused: each has one clear line."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.context import ServerContext
from service.errors import Problem
from service.inference_protocol import json_codec
from service.inference_protocol.tensors import elements_of, images_of
from service.several_images import ImageInput
from tests.service.stubs import StubEngine, client_of, put
from tests.service.test_inference_protocol import DIGIT, FILE, HEADER, PIXELS, SHAPE, SIZE, binary, elements

pytestmark = pytest.mark.anyio
QUIET = settings(deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
BINARY: dict[str, Any] = {"name": "image", "datatype": "BYTES", "shape": [1]}


@pytest.fixture
def server(stub_server: ServerContext) -> ServerContext:
    return stub_server


@pytest.fixture
async def client(server: ServerContext) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(server) as client:
        yield client


@pytest.fixture
def infer(three: list[str]) -> str:
    """Return the path of an inference by the model three[0]."""
    return f"/v2/models/{three[0]}/infer"


async def refused(client: httpx.AsyncClient, path: str, **sent: Any) -> tuple[int, str]:
    """Return the status and the error of a request that is refused."""
    answer = await client.post(path, **sent)
    assert answer.headers["content-type"] == "application/json"
    message = answer.json()
    assert list(message) == ["error"], message
    assert "\n" not in message["error"]
    return answer.status_code, message["error"]


@pytest.mark.parametrize(
    ("request_", "status", "said"),
    [
        ({}, 400, "inputs: Field required"),
        ([], 400, "Input should be an object"),
        ({"inputs": 1}, 400, "inputs: Input should be a valid array"),
        ({"inputs": []}, 400, "inputs: 0 tensors; send either pixels or image"),
        ({"inputs": [FILE, FILE]}, 400, "inputs: 2 tensors"),
        ({"inputs": [1] * 100_000}, 400, "inputs: List should have at most 8 items"),
        ({"inputs": [FILE], "outputs": [{"name": "logits"}] * 2}, 400, "outputs: an output is there twice"),
        ({"inputs": [{}]}, 400, "inputs.0.name: Field required; inputs.0.shape: Field required"),
        ({"inputs": [FILE | {"name": "INPUT0"}]}, 400, "there is no 'INPUT0'; send either pixels or image"),
        ({"inputs": [FILE | {"datatype": "FP32"}]}, 400, "image: the datatype is 'FP32'; send BYTES"),
        ({"inputs": [FILE | {"shape": [1, 2]}]}, 400, "image: the shape is [1, 2]; the model takes [n]"),
        ({"inputs": [FILE | {"shape": []}]}, 400, "the model takes [n]"),
        ({"inputs": [FILE | {"shape": [-1]}]}, 400, "inputs.0.shape.0: Input should be greater than or equal to 0"),
        ({"inputs": [FILE | {"shape": [1] * 9}]}, 400, "inputs.0.shape: List should have at most 8 items"),
        ({"inputs": [FILE | {"shape": [2]}]}, 400, "image: data has 1 elements; the shape is [2]"),
        ({"inputs": [FILE | {"shape": [0], "data": []}]}, 400, "no image"),
        ({"inputs": [FILE | {"shape": [65], "data": FILE["data"] * 65}]}, 413, "a request may have at most 64 images"),
        ({"inputs": [FILE | {"data": [1]}]}, 400, "image: data: send the base64 of a file as each element"),
        ({"inputs": [FILE | {"data": ["-"]}]}, 400, "image[0]: the image is not in base64"),
        ({"inputs": [FILE | {"data": [""]}]}, 400, "image[0]: the body is empty"),
        ({"inputs": [FILE | {"data": "x"}]}, 400, "inputs.0.data: Input should be a valid array"),
        ({"inputs": [PIXELS]}, 400, "pixels: no data; send `data`, or binary data"),
        ({"inputs": [PIXELS | {"shape": [32, 32, 1], "data": [0]}]}, 400, "the model takes [n, 32, 32, 1]"),
        ({"inputs": [PIXELS | {"shape": [1, 28, 28, 1], "data": [0]}]}, 400, "the model takes [n, 32, 32, 1]"),
        ({"inputs": [PIXELS | {"data": [0] * 7}]}, 400, "pixels: 7 elements; the shape [1, 32, 32, 1] has 1,024"),
        ({"inputs": [PIXELS | {"data": [0.5] * SIZE}]}, 400, "send whole numbers from 0 to 255"),
        ({"inputs": [PIXELS | {"data": [256] * SIZE}]}, 400, "send whole numbers from 0 to 255"),
        ({"inputs": [PIXELS | {"data": ["x"] * SIZE}]}, 400, "send whole numbers from 0 to 255"),
        ({"inputs": [PIXELS | {"data": [[0], 0] * SIZE}]}, 400, "send whole numbers from 0 to 255"),
        ({"inputs": [FILE], "outputs": [{"name": "x"}]}, 400, "there is no 'x'; there are logits and probabilities"),
        (
            {"inputs": [FILE], "outputs": [{"name": "logits", "parameters": {"classification": 0}}]},
            400,
            "outputs.0.parameters.classification: Input should be greater than or equal to 1",
        ),
        (
            {"inputs": [FILE | {"parameters": {"shared_memory_region": "x"}}]},
            400,
            "image: shared memory is not supported; send tensors in the request",
        ),
        (
            {"inputs": [FILE], "outputs": [{"name": "logits", "parameters": {"shared_memory_region": "x"}}]},
            400,
            "outputs: logits: shared memory is not supported",
        ),
        ({"inputs": [FILE], "parameters": {"timeout": -1}}, 400, "parameters.timeout: Input should be greater"),
        ({"inputs": [FILE], "parameters": {"timeout": 1}}, 422, "needs 1.0 ms for an image"),
        ({"inputs": [FILE], "parameters": {"priority": "high"}}, 400, "parameters.priority: Input should be a valid"),
    ],
)
async def test_a_wrong_request_is_one_line_that_names_the_member(
    client: httpx.AsyncClient, infer: str, request_: Any, status: int, said: str
) -> None:
    found, error = await refused(client, infer, json=request_)
    assert (found, said in error) == (status, True), error


@pytest.mark.parametrize(
    ("body", "headers", "status", "said"),
    [
        (b"", {}, 400, "Invalid JSON"),
        (b"\xff" * 50, {}, 400, "Invalid JSON"),
        (b"[" * 5000, {}, 400, "Invalid JSON"),
        (b"{}", {HEADER: "x"}, 400, f"{HEADER}: not a number of bytes"),
        (b"{}", {HEADER: "3"}, 400, f"{HEADER}: 3 bytes of JSON; the body has 2"),
        (DIGIT, {HEADER: "0"}, 400, f"{HEADER}: 0 bytes of JSON"),
        (b"[" + b"0," * 400_001 + b"0]", {}, 413, "more than 400,000 values; send the tensor as binary data"),
        (b"{}", {"Content-Encoding": "gzip"}, 415, "Content-Encoding: gzip is not supported"),
        (*binary(BINARY, b""), 400, "image: the binary data is not 1 elements"),
        (*binary(BINARY, elements(DIGIT)[:-1]), 400, "image: the binary data is not 1 elements"),
        (*binary(BINARY, elements(DIGIT, DIGIT)), 400, "image: the binary data is not 1 elements"),
        (*binary(BINARY, b"\xff" * 40), 400, "each element is its length, 4 bytes in little-endian order"),
        (*binary(PIXELS, b"0" * 5), 400, "pixels: 5 elements; the shape [1, 32, 32, 1] has 1,024"),
        (binary(BINARY, elements(DIGIT))[0], {}, 400, "Invalid JSON"),
        (b'{"inputs": []}xy', {HEADER: "14"}, 400, "behind the JSON are 2"),
        (
            b'{"inputs": [{"name": "image", "shape": [1], "datatype": "", "parameters": {"binary_data_size": 9}}]}',
            {},
            400,
            f"the sizes in binary_data_size are 9 bytes; behind the JSON are 0; {HEADER} says where the JSON ends",
        ),
    ],
)
async def test_a_wrong_body_is_one_line(
    client: httpx.AsyncClient, infer: str, body: bytes, headers: dict[str, str], status: int, said: str
) -> None:
    found, error = await refused(client, infer, content=body, headers=headers)
    assert (found, said in error) == (status, True), error


async def test_a_broken_picture_fails_the_request_and_is_named(
    client: httpx.AsyncClient, server: ServerContext, infer: str, three: list[str]
) -> None:
    files = [DIGIT] * 8
    files[3] = DIGIT[:100]
    body, headers = binary(BINARY | {"shape": [8]}, elements(*files))
    status, error = await refused(client, infer, content=body, headers=headers)
    assert (status, error.startswith("image[3]: the image cannot be decoded")) == (400, True)
    metrics = (await client.get("/metrics")).text
    assert f'convserve_images_total{{model="{three[0]}",outcome="ok"}} 7.0' in metrics
    assert f'convserve_images_total{{model="{three[0]}",outcome="broken_image"}} 1.0' in metrics
    put(server, three[0], StubEngine(error=RuntimeError("device lost")))
    status, error = await refused(client, infer, json={"inputs": [FILE]})
    assert (status, "device lost" in error) == (500, False)


@pytest.mark.parametrize(
    ("method", "path", "status", "said"),
    [
        ("GET", "/v2/models/lenet", 404, "did you mean lenet5"),
        ("GET", "/v2/models/lenet5/versions/1", 404, "'lenet5:1' is not published; there are lenet5:"),
        ("GET", "/v2/models/auto", 404, "there is no model 'auto'"),
        ("GET", "/v2/models/resnet18/ready", 409, "no published weights"),
        ("GET", "/v2/models/lenet5?x=1", 422, "x: there is no such parameter"),
        ("GET", "/v2/nosuch", 404, "Not Found"),
        ("GET", "/v2/models/lenet5/infer", 405, "Method Not Allowed"),
        ("POST", "/v2/systemsharedmemory/region/x/register", 501, "shared memory is not supported"),
        ("GET", "/v2/cudasharedmemory/status", 501, "shared memory is not supported"),
        ("POST", "/v2/repository/models/lenet5/load", 403, "CONVSERVE_ADMIN_TOKEN"),
        ("POST", "/v2/repository/index", 413, "the JSON may have at most 262,144 bytes"),
    ],
)
async def test_every_error_below_v2_has_the_form_of_the_protocol(
    client: httpx.AsyncClient, method: str, path: str, status: int, said: str
) -> None:
    answer = await client.request(method, path, content=b"[" * 300_000 if status == 413 else None)
    assert (answer.status_code, list(answer.json())) == (status, ["error"])
    assert said in answer.json()["error"]


async def test_an_overload_is_refused_before_the_body_is_read(
    client: httpx.AsyncClient, server: ServerContext, infer: str, three: list[str]
) -> None:
    async def body() -> AsyncIterator[bytes]:
        yield b"{"
        raise AssertionError("the body is read")

    queue = server.catalog.models[three[0]].chosen.queue
    assert queue
    queue.decoding += 1_000_000
    answer = await client.post(infer, content=body())
    queue.decoding -= 1_000_000
    assert (answer.status_code, list(answer.json())) == (503, ["error"])
    assert int(answer.headers["Retry-After"]) > 0
    large = await client.post(infer, content=b"x", headers={"Content-Length": str(11 * 1024 * 1024)})
    assert (large.status_code, "the body may have at most" in large.json()["error"]) == (413, True)


def tried(make: Callable[[], Sequence[ImageInput]]) -> Sequence[ImageInput] | Problem:
    """Return images, or the problem with which their making ends; any other exception fails the test."""
    try:
        return make()
    except Problem as problem:
        return problem


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.sampled_from(["pixels", "image", "UINT8", "BYTES", "A"]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["name", "shape", "datatype", "data", "parameters", "inputs"]), inner)
    ),
    max_leaves=20,
)


@settings(QUIET, max_examples=300)
@given(JSON | st.fixed_dictionaries({"inputs": st.lists(JSON, max_size=2)}), st.binary(max_size=20))
def test_any_request_is_images_or_a_problem(request_: Any, raw: bytes) -> None:
    text = json.dumps(request_).encode()
    found = tried(lambda: images_of(json_codec.parse(text + raw, len(text)), (32, 32, 1), 64))
    if isinstance(found, Problem):
        assert found.status in {400, 413}
    else:
        assert all(isinstance(image, bytes | Problem) or list(image.shape) == SHAPE for image in found)


@QUIET
@given(st.binary(max_size=40), st.integers(0, 5))
def test_binary_data_is_elements_or_a_problem(raw: bytes, count: int) -> None:
    found = tried(lambda: elements_of(raw, count))
    if isinstance(found, Problem):
        assert found.code == "invalid_inference_request"
    else:
        assert elements(*(element for element in found if isinstance(element, bytes))) == raw
        assert len(found) == count
