"""Tests of the services of gRPC that need no key: health and reflection."""

from __future__ import annotations

import asyncio

import pytest
from grpc import StatusCode, aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from service.context import ServerContext
from service.device import LocalDevice
from service.inference_protocol import grpc_open_services
from service.inference_protocol.grpc_open_services import AT_A_TIME, HEALTH
from service.inference_protocol.messages import SERVICE
from tests.service.test_inference_protocol_grpc import channel_to

pytestmark = pytest.mark.anyio


@pytest.fixture
def server(stub_server: ServerContext) -> ServerContext:
    """Return a server that is ready."""
    assert isinstance(stub_server.device, LocalDevice)
    stub_server.device._loaded = True
    return stub_server


async def test_health_and_reflection_are_there(server: ServerContext) -> None:
    states = health_pb2.HealthCheckResponse
    async with channel_to(server) as (channel, served):
        stub = health_pb2_grpc.HealthStub(channel)
        for service in ("", SERVICE):
            assert (await stub.Check(health_pb2.HealthCheckRequest(service=service))).status == states.SERVING
        reflected = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo
        symbols = [SERVICE, "grpc.health.v1.Health"]
        asked = [reflection_pb2.ServerReflectionRequest(list_services="")]
        asked += [reflection_pb2.ServerReflectionRequest(file_containing_symbol=symbol) for symbol in symbols]
        listed, *files = [answer async for answer in reflected(iter(asked))]
        assert {service.name for service in listed.list_services_response.service} >= set(symbols)
        assert all(file.file_descriptor_response.file_descriptor_proto for file in files)
        with pytest.raises(aio.AioRpcError) as error:
            await stub.Check(health_pb2.HealthCheckRequest(service="x"))
        assert error.value.code() == StatusCode.NOT_FOUND
        watch, unknown = (stub.Watch(health_pb2.HealthCheckRequest(service=service)) for service in ("", "x"))
        assert [(await each.read()).status for each in (watch, unknown)] == [states.SERVING, states.SERVICE_UNKNOWN]
        server.leaving.set()
        assert (await watch.read()).status == states.NOT_SERVING
        assert (await stub.Check(health_pb2.HealthCheckRequest())).status == states.NOT_SERVING
        async with asyncio.timeout(5):  # those who watch keep no process from its end
            await served.stop(60)


async def test_so_many_clients_may_watch(server: ServerContext, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grpc_open_services, "MOST_WATCHING", 1)
    async with channel_to(server) as (channel, _):
        stub = health_pb2_grpc.HealthStub(channel)
        first = stub.Watch(health_pb2.HealthCheckRequest())
        assert (await first.read()).status
        with pytest.raises(aio.AioRpcError) as error:
            await stub.Watch(health_pb2.HealthCheckRequest()).read()
        assert (error.value.code(), error.value.details()) == (
            StatusCode.RESOURCE_EXHAUSTED,
            "1 clients watch already; call Check",
        )
        first.cancel()
        await asyncio.sleep(0.1)
        assert (await stub.Watch(health_pb2.HealthCheckRequest()).read()).status


async def test_messages_that_are_slow_large_or_wrong_end_their_calls(
    server: ServerContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grpc_open_services, "ARRIVES_S", 0.8)
    codes = []
    async with channel_to(server) as (channel, _):
        stalled = [channel.stream_unary(f"/{HEALTH}/Check")() for _ in range(AT_A_TIME)]  # and send no message
        await asyncio.sleep(0.3)
        assert (await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())).status
        sent = [channel.unary_unary(f"/{HEALTH}/Check")(message) for message in (bytes(10_001), b"\xff")]
        for call in (*stalled, *sent):
            with pytest.raises(aio.AioRpcError) as error:
                await call
            codes.append(error.value.code())
    assert codes == [StatusCode.DEADLINE_EXCEEDED] * AT_A_TIME + [
        StatusCode.RESOURCE_EXHAUSTED,
        StatusCode.INVALID_ARGUMENT,
    ]
