"""Tests of the Open Inference Protocol over gRPC, with a server and clients in the process of the tests."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from grpc import Compression, StatusCode, aio

from service.context import ServerContext, make_context
from service.device import LocalDevice
from service.errors import Problem
from service.inference import deadline_of
from service.inference_protocol import messages
from service.inference_protocol.grpc_server import GrpcServer, headers_of
from service.inference_protocol.messages import SERVICE
from service.settings import Settings
from tests.conftest import Run
from tests.service.stubs import StubEngine, client_of, put
from tests.service.test_inference_protocol import DIGIT, SHAPE, SIZE, elements
from tests.serving import ROOT

pytestmark = pytest.mark.anyio
ADDRESS = "127.0.0.1"


@pytest.fixture
def server(stub_server: ServerContext) -> ServerContext:
    """Return a server that is ready, whose model three[0] answers 0 in 1 predicted ms."""
    assert isinstance(stub_server.device, LocalDevice)
    stub_server.device._loaded = True
    return stub_server


@asynccontextmanager
async def channel_to(server: ServerContext) -> AsyncIterator[tuple[Any, GrpcServer]]:
    """Yield a channel to a server of gRPC, and the server."""
    served = GrpcServer(server)
    await served.start(ADDRESS, 0)
    try:
        async with aio.insecure_channel(f"{ADDRESS}:{served.port}") as channel:
            yield channel, served
    finally:
        await served.stop(1)
        await asyncio.sleep(0.1)  # gRPC's last events must not find the loop closed


async def ask(
    channel: Any, method: str, *metadata: tuple[str, str], timeout: float | None = None, **members: Any
) -> Any:
    """Return the answer to a call. Raises AioRpcError."""
    classes = messages.classes()[method]
    call = channel.unary_unary(
        f"/{SERVICE}/{method}",
        request_serializer=classes.request.SerializeToString,
        response_deserializer=classes.answer.FromString,
    )
    return await call(classes.request(**members), metadata=metadata, timeout=timeout)


async def refused(channel: Any, method: str, *metadata: tuple[str, str], **members: Any) -> tuple[Any, str]:
    """Return the status and the details of a call that is refused."""
    with pytest.raises(aio.AioRpcError) as error:
        await ask(channel, method, *metadata, **members)
    return error.value.code(), error.value.details()


def named(tag: str) -> dict[str, Any]:
    """Return the members of a request that name a model."""
    name, _, version = tag.partition(":")
    return {"name": name, "version": version}


def request_of(tag: str, files: list[bytes], **members: Any) -> dict[str, Any]:
    """Return the members of a request with files as binary data."""
    name, _, version = tag.partition(":")
    tensor = {"name": "image", "datatype": "BYTES", "shape": [len(files)]}
    sent = {"inputs": [tensor], "raw_input_contents": [elements(*files)]}
    return {"model_name": name, "model_version": version, **sent, **members}


async def test_the_methods_answer_what_http_answers(server: ServerContext, three: list[str]) -> None:
    path = "/v2/models/{name}/versions/{version}".format(**named(three[0]))
    async with channel_to(server) as (channel, _), client_of(server) as client:
        assert (await ask(channel, "ServerLive")).live
        assert (await ask(channel, "ServerReady")).ready
        about = await ask(channel, "ServerMetadata")
        assert {"name": about.name, "version": about.version, "extensions": list(about.extensions)} == (
            await client.get("/v2")
        ).json()
        found = await ask(channel, "ModelMetadata", **named(three[0]))
        assert [list(tensor.shape) for tensor in found.inputs] == [[-1, *SHAPE], [-1]]
        assert list(found.versions) == (await client.get(path)).json()["versions"]
        config = (await ask(channel, "ModelConfig", **named(three[0]))).config
        assert (config.max_batch_size, config.HasField("dynamic_batching")) == (64, True)
        assert [tensor.optional for tensor in config.input] == [True, True]
        assert (await ask(channel, "ModelReady", name=three[0])).ready
        listed = (await ask(channel, "RepositoryIndex", ready=True)).models
        assert {(model.name, model.state) for model in listed} == {("lenet5", "READY")}
        await ask(channel, "ModelInfer", **request_of(three[0], [DIGIT] * 3))
        (stats,) = (await ask(channel, "ModelStatistics", **named(three[0]))).model_stats
        assert (stats.inference_count, stats.inference_stats.success.count) == (3, 3)
        assert stats.inference_stats.success.ns > 0
        assert len((await ask(channel, "ModelStatistics")).model_stats) >= len(three)
        route = f'route="/{SERVICE}/ModelInfer",status="200"'
        assert route in (await client.get("/metrics")).text


async def test_an_inference_answers_as_over_http(
    server: ServerContext, three: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    outputs = [{"name": "logits"}, {"name": "probabilities", "parameters": {"classification": {"int64_param": 2}}}]
    async with channel_to(server) as (channel, _):
        answer = await ask(
            channel,
            "ModelInfer",
            ("x-request-id", "abc-1"),
            timeout=5,
            **request_of(
                three[0], [DIGIT] * 2, id="42", outputs=outputs, parameters={"timeout": {"int64_param": 10**6}}
            ),
        )
        assert (answer.model_name, answer.model_version, answer.id) == ("lenet5", three[0].partition(":")[2], "42")
        assert answer.parameters["runtime"].string_param == "stub"
        logits, classes = answer.raw_output_contents
        assert np.frombuffer(logits, "<f4").reshape(answer.outputs[0].shape).tolist() == [[1, *[0] * 9]] * 2
        assert (answer.outputs[1].datatype, list(answer.outputs[1].shape)) == ("BYTES", [2, 2])
        assert b":0:0" in classes
        file = {"name": "image", "datatype": "BYTES", "shape": [1], "contents": {"bytes_contents": [DIGIT]}}
        pixels = {"name": "pixels", "datatype": "UINT8", "shape": [1, *SHAPE]}
        forms: list[dict[str, Any]] = [
            {"inputs": [file]},
            {"inputs": [pixels | {"contents": {"uint_contents": [7] * SIZE}}]},
            {"inputs": [pixels], "raw_input_contents": [bytes(SIZE)]},
        ]
        for sent in forms:
            answer = await ask(channel, "ModelInfer", model_name=three[0], **sent)
            assert [list(output.shape) for output in answer.outputs] == [[1, 10], [1, 10]]
    line = json.loads(capsys.readouterr().out.splitlines()[0])
    assert line == line | {
        "request_id": "abc-1",
        "method": "gRPC",
        "route": f"/{SERVICE}/ModelInfer",
        "status": 200,
        "model": three[0],
    }


async def test_a_wrong_request_has_a_status_and_a_line(server: ServerContext, three: list[str]) -> None:
    right = request_of(three[0], [DIGIT])
    tensor = right["inputs"][0]
    typed = tensor | {"contents": {"bytes_contents": [DIGIT]}}
    floats = {"name": "pixels", "datatype": "UINT8", "shape": [1, *SHAPE], "contents": {"fp32_contents": [1.0] * SIZE}}
    region = tensor | {"parameters": {"shared_memory_region": {"string_param": "x"}}}
    cases: list[tuple[dict[str, Any], Any, str]] = [
        ({"model_name": "lenet"}, StatusCode.NOT_FOUND, "did you mean lenet5"),
        ({"model_name": "resnet18", "model_version": ""}, StatusCode.FAILED_PRECONDITION, "no published weights"),
        ({"inputs": []}, StatusCode.INVALID_ARGUMENT, "raw_input_contents: 1, one is needed for each of 0 inputs"),
        ({"inputs": [tensor] * 9}, StatusCode.INVALID_ARGUMENT, "raw_input_contents: send at most 8 of each"),
        ({"inputs": [tensor | {"shape": [1] * 9}]}, StatusCode.INVALID_ARGUMENT, "List should have at most 8 items"),
        ({"inputs": [typed]}, StatusCode.INVALID_ARGUMENT, "send either contents or raw_input_contents"),
        ({"inputs": [floats], "raw_input_contents": []}, StatusCode.INVALID_ARGUMENT, "send whole numbers"),
        ({"inputs": [tensor | {"shape": [-1]}]}, StatusCode.INVALID_ARGUMENT, "inputs.0.shape.0: Input should be"),
        ({"raw_input_contents": [b"x"]}, StatusCode.INVALID_ARGUMENT, "image: the binary data is not 1 elements"),
        ({"raw_input_contents": [elements(b"x")]}, StatusCode.INVALID_ARGUMENT, "image[0]: not an image"),
        (
            {"inputs": [floats | {"contents": {"uint_contents": [0] * 400_001}}], "raw_input_contents": []},
            StatusCode.RESOURCE_EXHAUSTED,
            "contents: more than 400,000 values; send raw_input_contents",
        ),
        ({"inputs": [region]}, StatusCode.INVALID_ARGUMENT, "image: shared memory is not supported"),
        ({"outputs": [{"name": "x"}]}, StatusCode.INVALID_ARGUMENT, "outputs: there is no 'x'"),
        ({"parameters": {"timeout": {"int64_param": 1}}}, StatusCode.INVALID_ARGUMENT, "needs 1.0 ms for an image"),
    ]
    async with channel_to(server) as (channel, _):
        for changes, status, said in cases:
            code, details = await refused(channel, "ModelInfer", **right | changes)
            assert (code, said in details) == (status, True), details
        await ask(channel, "ModelInfer", **right)
        code, details = await refused(channel, "RepositoryModelLoad", model_name="lenet5")
        assert (code, "CONVSERVE_ADMIN_TOKEN" in details) == (StatusCode.PERMISSION_DENIED, True)
        for method, said in (("SystemSharedMemoryStatus", "shared memory is not supported"), ("NoSuch", "not found")):
            with pytest.raises(aio.AioRpcError) as error:
                await channel.unary_unary(f"/{SERVICE}/{method}")(b"")
            assert (error.value.code(), said in error.value.details()) == (StatusCode.UNIMPLEMENTED, True)
        with pytest.raises(aio.AioRpcError) as error:
            await channel.unary_unary(f"/{SERVICE}/ModelInfer")(b"\xff")
        assert error.value.details() == "the message is no ModelInferRequest"
        with pytest.raises(aio.AioRpcError) as error:
            await channel.unary_unary(f"/{SERVICE}/ModelInfer")(bytes(11 * 1024 * 1024))
        assert error.value.code() == StatusCode.RESOURCE_EXHAUSTED
        with pytest.raises(aio.AioRpcError) as error:  # which would unpack to any size
            await channel.unary_unary(f"/{SERVICE}/ModelInfer")(bytes(1000), compression=Compression.Gzip)
        assert error.value.code() == StatusCode.UNIMPLEMENTED


async def test_an_overload_says_when_to_ask_again(server: ServerContext, three: list[str]) -> None:
    queue = server.catalog.models[three[0]].chosen.queue
    assert queue
    async with channel_to(server) as (channel, _):
        queue.decoding += 1_000_000
        with pytest.raises(aio.AioRpcError) as error:
            await ask(channel, "ModelInfer", **request_of(three[0], [DIGIT]))
        queue.decoding -= 1_000_000
        trailing = dict(error.value.trailing_metadata())
        assert (error.value.code(), trailing["convserve-code"]) == (StatusCode.UNAVAILABLE, "overloaded")
        assert int(trailing["grpc-retry-pushback-ms"]) > 0
        server.bodies._held = 10**9
        code, details = await refused(channel, "ModelInfer", **request_of(three[0], [DIGIT]))
        assert (code, "the bodies of other requests" in details) == (StatusCode.UNAVAILABLE, True)


async def test_calls_without_a_key_keep_no_message_waiting(three: list[str]) -> None:
    settings = {"api_keys": ["one"], "max_body_bytes": 10_000, "max_bodies_bytes": 20_000}
    server = make_context(Settings.model_validate(settings))
    put(server, three[0], StubEngine())
    async with channel_to(server) as (channel, _):
        stalled = [channel.stream_unary(f"/{SERVICE}/ServerLive")() for _ in range(3)]  # and send no message
        await asyncio.sleep(0.1)
        assert server.bodies.count == 0
        await ask(channel, "ModelInfer", ("x-api-key", "one"), **request_of(three[0], [DIGIT]))
        live = messages.encoded("ServerLive", {"live": True})
        assert [await call for call in stalled] == [live] * 3


def test_metadata_may_have_any_characters() -> None:
    headers = headers_of([("x-request-id", "a-1"), ("x-api-key", "\u20ac"), ("trace-bin", b"\xff")])
    assert (headers["X-Request-ID"], headers.keys()) == ("a-1", ["x-request-id", "x-api-key"])


def test_a_message_that_would_be_huge_is_refused_unparsed() -> None:
    kind = messages.classes()["ModelInfer"].request
    many = b"\x2a\x00" * 1_000_000  # inputs without members
    nested = kind(inputs=[{"contents": {"bytes_contents": [b""] * 1001}}])
    packed = kind(inputs=[{"shape": [1] * 3_200_001}])
    for data in (
        many,
        nested.SerializeToString(),
        packed.SerializeToString(),
        kind(id="x" * 10_001).SerializeToString(),
    ):
        with pytest.raises(Problem) as problem:
            messages.decoded("ModelInfer", data)
        assert problem.value.status == 413
    right = kind(**request_of("lenet5:x", [DIGIT] * 64)).SerializeToString()
    assert messages.decoded("ModelInfer", right).model_name == "lenet5"
    for wrong in (right[:-1], b"\x0b", b"\x0a\xff", b"\xff" * 11):
        with pytest.raises(Problem) as problem:
            messages.decoded("ModelInfer", wrong)
        assert problem.value.status == 400


async def test_keys_and_the_admins_token_are_metadata(three: list[str]) -> None:
    server = make_context(Settings.model_validate({"api_keys": ["one"], "admin_token": "root"}))
    put(server, three[0], StubEngine())
    async with channel_to(server) as (channel, _):
        assert (await ask(channel, "ServerLive")).live
        assert not (await ask(channel, "ServerReady")).ready
        right = request_of(three[0], [DIGIT])
        wrong: list[list[tuple[str, str]]] = [[], [("x-api-key", "two")]]
        for metadata in wrong:
            code, _details = await refused(channel, "ModelInfer", *metadata, **right)
            assert code == StatusCode.UNAUTHENTICATED
        for pair in (("x-api-key", "one"), ("authorization", "Bearer one")):
            await ask(channel, "ModelInfer", pair, **right)
        code, _details = await refused(channel, "RepositoryModelUnload", ("x-api-key", "one"), model_name=three[0])
        assert code == StatusCode.UNAUTHENTICATED
        await ask(channel, "RepositoryModelUnload", ("authorization", "Bearer root"), model_name=three[0])
        assert not (await ask(channel, "ModelReady", ("x-api-key", "one"), name=three[0])).ready


async def test_a_client_with_limits_is_named_and_refused(three: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    shop = {"key_sha256": sha256(b"one").hexdigest(), "rate": 0.001, "burst": 1}
    server = make_context(Settings.model_validate({"clients": {"shop": shop}, "metrics_public": True}))
    put(server, three[0], StubEngine())
    right, key = request_of(three[0], [DIGIT] * 2), ("x-api-key", "one")
    async with channel_to(server) as (channel, _), client_of(server) as client:
        assert (await refused(channel, "ModelInfer", **right))[0] == StatusCode.UNAUTHENTICATED
        await ask(channel, "ModelInfer", key, **right)
        code, details = await refused(channel, "ModelInfer", key, **right)
        assert (code, details) == (StatusCode.RESOURCE_EXHAUSTED, "the client has used up its requests")
        lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        metrics = (await client.get("/metrics")).text
    assert [(line["status"], line.get("client")) for line in lines] == [(401, None), (200, "shop"), (429, "shop")]
    assert 'convserve_client_requests_total{client="shop",status="429"} 1.0' in metrics
    assert 'convserve_client_device_seconds_total{client="shop"}' in metrics


async def test_a_call_that_is_given_up_leaves_the_queue(
    server: ServerContext, three: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = server.catalog.models[three[0]].chosen.queue
    assert queue

    async def never(*_: object) -> Any:
        await asyncio.Event().wait()

    monkeypatch.setattr(server.scheduler, "infer", never)
    async with channel_to(server) as (channel, _):
        with pytest.raises(aio.AioRpcError) as error:
            await ask(channel, "ModelInfer", timeout=0.2, **request_of(three[0], [DIGIT]))
        assert error.value.code() == StatusCode.DEADLINE_EXCEEDED
        await asyncio.sleep(0.1)
        assert (queue.users, queue.decoding, server.bodies.count) == (0, 0, 0)
    line = json.loads(capsys.readouterr().out.splitlines()[0])
    assert line["code"] in {"disconnected", "timeout"}
    counted = [sample for sample in server.metrics.samples() if sample.name == "convserve_images_total"]
    assert [(sample.labels["outcome"], sample.value) for sample in counted] == [(line["code"], 1)]
    assert deadline_of(server, 0.0) <= server.scheduler.clock()  # a call that has no time left has none


async def test_a_port_that_is_taken_is_an_error(server: ServerContext) -> None:
    served, other = GrpcServer(server), GrpcServer(server)
    await served.start(ADDRESS, 0)
    with pytest.raises(RuntimeError):
        await other.start(ADDRESS, served.port)
    await served.stop(0.1)


def test_the_compiled_messages_are_those_of_the_proto(run: Run, tmp_path: Path) -> None:
    pytest.importorskip("grpc_tools", reason="grpcio-tools is not installed")
    compiled = tmp_path / "inference.binpb"
    folder = ROOT / "service" / "inference_protocol"
    run("grpc_tools.protoc", "-I", folder, f"--descriptor_set_out={compiled}", "inference.proto")
    found, expected = (FileDescriptorSet.FromString(path.read_bytes()) for path in (messages.COMPILED, compiled))
    assert found == expected, "run `make protocol`"
