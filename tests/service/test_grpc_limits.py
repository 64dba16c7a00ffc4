"""Tests of the limits of the server of gRPC: calls, messages that arrive at a time, and time."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace
from typing import Any

import pytest
from grpc import StatusCode, aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from service.context import make_context
from service.errors import Problem
from service.inference_protocol import grpc_server, messages
from service.inference_protocol.grpc_server import address_of
from service.inference_protocol.messages import SERVICE
from service.settings import Settings
from tests.service.stubs import StubEngine, client_of, put
from tests.service.test_inference_protocol import DIGIT
from tests.service.test_inference_protocol_grpc import ask, channel_to, request_of

pytestmark = pytest.mark.anyio
METHOD = f"/{SERVICE}/ModelInfer"


async def test_calls_beyond_those_that_may_wait_are_refused_in_words(
    three: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    server = make_context(Settings(max_waiting=2))
    put(server, three[0], StubEngine())
    right = request_of(three[0], [DIGIT])
    async with channel_to(server) as (channel, _), client_of(server) as client:
        stalled = [channel.stream_unary(METHOD)() for _ in range(2)]  # and send no message
        await asyncio.sleep(0.1)
        with pytest.raises(aio.AioRpcError) as error:
            await ask(channel, "ModelInfer", **right)
        trailing = dict(error.value.trailing_metadata())
        assert (error.value.code(), error.value.details()) == (StatusCode.UNAVAILABLE, "2 calls wait already")
        assert (trailing["convserve-code"], trailing["grpc-retry-pushback-ms"]) == ("overloaded", "1000")
        line = json.loads(capsys.readouterr().out)
        assert (line["status"], line["code"]) == (503, "overloaded")
        assert 'outcome="overloaded"} 1.0' in (await client.get("/metrics")).text
        assert (await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())).status
        stalled[0].cancel()
        await asyncio.sleep(0.1)
        await ask(channel, "ModelInfer", **right)
        stalled[1].cancel()
        await asyncio.sleep(0.1)


async def test_few_messages_arrive_at_a_time_and_each_is_counted_until_its_answer(
    three: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = make_context(Settings(max_body_bytes=10_000, max_bodies_bytes=40_000))
    queue = put(server, three[0], StubEngine())
    monkeypatch.setattr(grpc_server, "address_of", lambda call: dict(call.invocation_metadata())["address"])
    right = request_of(three[0], [DIGIT])
    size = messages.classes()["ModelInfer"].request(**right).ByteSize()
    own, others = ("address", "a"), ("address", "b")
    async with channel_to(server) as (channel, _):
        stalled = [channel.stream_unary(METHOD)(metadata=[own]) for _ in range(2)]  # and send no message
        await asyncio.sleep(0.1)
        assert server.bodies.count == 2
        third = asyncio.create_task(ask(channel, "ModelInfer", own, **right))
        await asyncio.sleep(0.1)
        assert (server.bodies.count, third.done()) == (3, False)
        await ask(channel, "ModelInfer", others, **right)  # for whom the other half of the room is
        stalled[0].cancel()
        await third
        held = []
        model, unpatched = server.catalog.models[three[0]], server.device.queue

        async def loading(*_: object) -> Any:
            held.append(server.bodies._held)
            return await unpatched(model)

        server.device.queue = loading  # type: ignore[assignment,method-assign]
        await ask(channel, "ModelInfer", own, **right)
        assert held == [size]
        stalled[1].cancel()
        await asyncio.sleep(0.1)
        assert (server.bodies.count, server.bodies._held, queue.users) == (0, 0, 0)


@pytest.mark.parametrize("address", ["ipv4:127.0.0.1", "ipv6:%5B::1%5D"])
def test_a_client_is_known_by_its_address_without_the_port(address: str) -> None:
    assert address_of(SimpleNamespace(peer=lambda: f"{address}:54321")) == address


async def test_the_inference_has_the_time_that_its_message_left(
    three: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = make_context(Settings(timeout_s=2))
    put(server, three[0], StubEngine())
    left_s = []

    async def infer(*_: object, timeout_s: float) -> None:
        left_s.append(timeout_s)
        raise Problem(409, "no_weights", "there are none")

    monkeypatch.setattr(grpc_server, "infer", infer)
    message = messages.classes()["ModelInfer"].request(**request_of(three[0], [DIGIT])).SerializeToString()
    async with channel_to(server) as (channel, _):
        call = channel.stream_unary(METHOD)()
        await asyncio.sleep(0.5)
        await call.write(message)
        await call.done_writing()
        with pytest.raises(aio.AioRpcError):
            await call
    assert 0 < left_s[0] < 1.6
