"""Services of gRPC that need no key: the standard health service, and reflection.

gRPC delivers a message as a whole, up to the size that an inference may have. So only few messages of these services
arrive at a time, and one that is slow or large ends its call.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from grpc import StatusCode, aio
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection, reflection_pb2

from service.context import ServerContext
from service.inference_protocol import messages
from service.inference_protocol.messages import SERVICE
from service.inference_protocol.wire import MAX_TEXT

HEALTH = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
AT_A_TIME = 16  # messages that arrive
ARRIVES_S = 2.0  # in which a message must arrive
MOST_WATCHING = 64  # clients that watch the readiness; each is a call that does not end
LOOK_S = 0.5  # between two looks at the readiness, for a client that watches it


class OpenServices:
    """Health service, which reports the readiness of the server, and reflection.

    The library's health service holds a lock while it tells a client that watches: one that does not read would keep
    all others, and the end of the process, waiting.
    """

    def __init__(self, server: ServerContext) -> None:
        self._server = server
        self._arriving = asyncio.Semaphore(AT_A_TIME)
        self._watching = 0
        self.ended = False  # set once no calls are accepted
        pool = messages.pool()
        for file in (health_pb2.DESCRIPTOR, reflection_pb2.DESCRIPTOR):
            pool.AddSerializedFile(file.serialized_pb)
        names = (SERVICE, HEALTH, reflection.SERVICE_NAME)
        self._reflection = reflection.aio.ReflectionServicer(names, pool=pool)

    def handlers(self) -> tuple[Any, Any]:
        """Return the handlers of both services."""
        health = {
            "Check": grpc.stream_unary_rpc_method_handler(self._check),
            "Watch": grpc.stream_stream_rpc_method_handler(self._watch),
        }
        reflected = {"ServerReflectionInfo": grpc.stream_stream_rpc_method_handler(self._reflect)}
        return (
            grpc.method_handlers_generic_handler(HEALTH, health),
            grpc.method_handlers_generic_handler(reflection.SERVICE_NAME, reflected),
        )

    async def _check(self, _: object, call: Any) -> bytes:
        """Return the state of a service, or end the call with NOT_FOUND."""
        state = self._state(await self._service(call))
        if state == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN:
            await call.abort(StatusCode.NOT_FOUND, "there is no such service")
        return message_of(state)

    async def _watch(self, _: object, call: Any) -> None:
        """Send the state of a service, and each other state, until no calls are accepted; only to some clients."""
        if self._watching >= MOST_WATCHING:
            await call.abort(StatusCode.RESOURCE_EXHAUSTED, f"{MOST_WATCHING} clients watch already; call Check")
        self._watching += 1
        try:
            service, told = await self._service(call), None
            while not self.ended:
                state = self._state(service)
                if state != told:
                    await call.write(message_of(state))
                    told = state
                await asyncio.sleep(LOOK_S)
        finally:
            self._watching -= 1

    async def _reflect(self, _: object, call: Any) -> AsyncIterator[bytes]:
        """Yield the answer to each question about messages."""

        async def asked() -> AsyncIterator[Any]:
            while (question := await self._next(call, reflection_pb2.ServerReflectionRequest)) is not None:
                yield question

        async for answer in self._reflection.ServerReflectionInfo(asked(), call):
            yield answer.SerializeToString()

    def _state(self, service: str) -> Any:
        states = health_pb2.HealthCheckResponse
        if service not in {"", SERVICE}:
            return states.SERVICE_UNKNOWN
        return states.NOT_SERVING if self._server.not_ready else states.SERVING

    async def _service(self, call: Any) -> str:
        """Return the name of the service whose health a call asks for."""
        question = await self._next(call, health_pb2.HealthCheckRequest)
        if question is None:
            await call.abort(StatusCode.INVALID_ARGUMENT, "the call has no message, or one that is too large")
        name: str = question.service
        return name

    async def _next(self, call: Any, kind: Any) -> Any:
        """Return the next message of a call, or None after the last. Ends the call unless it arrives soon and small."""
        try:
            async with asyncio.timeout(ARRIVES_S), self._arriving:
                data = await call.read()
            if data is aio.EOF:
                return None
            if len(data) <= MAX_TEXT:
                return kind.FromString(data)
            await call.abort(StatusCode.RESOURCE_EXHAUSTED, f"the message has more than {MAX_TEXT:,} bytes")
        except TimeoutError:
            await call.abort(StatusCode.DEADLINE_EXCEEDED, f"no message has arrived within {ARRIVES_S:g} s")
        except DecodeError:
            await call.abort(StatusCode.INVALID_ARGUMENT, "the message is none of this service")


def message_of(state: Any) -> bytes:
    """Return the message with a state."""
    message: bytes = health_pb2.HealthCheckResponse(status=state).SerializeToString()
    return message
