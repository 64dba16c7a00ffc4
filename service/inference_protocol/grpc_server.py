"""Server of the Open Inference Protocol over gRPC, in the process that serves HTTP."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from http import HTTPStatus
from typing import Any
from weakref import WeakValueDictionary

import grpc
from grpc import StatusCode, aio
from starlette.datastructures import Headers, State

from service.body import Body
from service.context import ServerContext, bearer, check_admin, let_in, noted
from service.errors import Problem
from service.inference import deadline_of
from service.inference_protocol import messages
from service.inference_protocol.grpc_methods import ADMIN, METHODS, OPEN, SHARED_MEMORY
from service.inference_protocol.grpc_open_services import OpenServices
from service.inference_protocol.inference import infer
from service.inference_protocol.messages import SERVICE
from service.inference_protocol.models import full_name
from service.inference_protocol.tensors import NO_SHARED_MEMORY, Received
from service.request_log import HEADER, id_of, write

INFER = "ModelInfer"
LARGEST = 2**31 - 1  # bytes of a message that gRPC can be told
BEYOND = 1024  # calls beyond `max_waiting`: those that need no key, or are being refused
CODES = {
    400: StatusCode.INVALID_ARGUMENT,
    401: StatusCode.UNAUTHENTICATED,
    403: StatusCode.PERMISSION_DENIED,
    404: StatusCode.NOT_FOUND,
    409: StatusCode.FAILED_PRECONDITION,
    413: StatusCode.RESOURCE_EXHAUSTED,
    415: StatusCode.INVALID_ARGUMENT,
    422: StatusCode.INVALID_ARGUMENT,
    429: StatusCode.RESOURCE_EXHAUSTED,
    500: StatusCode.INTERNAL,
    501: StatusCode.UNIMPLEMENTED,
    503: StatusCode.UNAVAILABLE,
    504: StatusCode.DEADLINE_EXCEEDED,
}
logger = logging.getLogger("bentoml.convserve")


class GrpcServer:
    """Server of gRPC, with the protocol's methods, the standard health service, and reflection."""

    def __init__(self, server: ServerContext) -> None:
        settings = server.settings
        self._server = server
        self._at_a_time = settings.max_bodies_bytes // settings.max_body_bytes  # messages that arrive
        self._reading = asyncio.Semaphore(self._at_a_time)
        self._shares: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()  # of each client's address
        self._calls = 0  # that read a message or wait for their answer
        self._open = OpenServices(server)
        self._grpc: Any = None
        self.port = 0  # once the server listens
        self._ending: asyncio.Task[None] | None = None

    async def start(self, host: str, port: int, *, shared: bool = False) -> None:
        """Listen on a port, 0 for any that is free.

        With `shared` other processes listen on the port too. Raises RuntimeError if the port is not free.
        """
        settings = self._server.settings
        most = settings.max_waiting + BEYOND  # beyond them gRPC itself refuses, without a line in the log
        options = [
            ("grpc.max_receive_message_length", min(settings.max_body_bytes, LARGEST)),
            ("grpc.compression_enabled_algorithms_bitset", 1),  # none: the limit is not for what a message unpacks to
            ("grpc.max_concurrent_streams", most // 2),  # of a connection
            ("grpc.so_reuseport", int(shared)),
        ]
        self._grpc = aio.server(options=options, maximum_concurrent_rpcs=most)
        handlers = {name: self._handler(name) for name in (INFER, *METHODS, *SHARED_MEMORY)}
        own = grpc.method_handlers_generic_handler(SERVICE, handlers)
        self._grpc.add_generic_rpc_handlers((own, *self._open.handlers()))
        self.port = self._grpc.add_insecure_port(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
        await self._grpc.start()
        logger.info("gRPC listens on %s, port %d", host, self.port)

    def end(self, grace_s: float) -> None:
        """Accept no more calls; those that are under way have `grace_s` seconds."""
        self._open.ended = True
        if self._ending is None:
            self._ending = asyncio.create_task(self._grpc.stop(grace_s))

    async def stop(self, grace_s: float) -> None:
        """Wait until the calls under way are answered, after `end`, which is called unless it was."""
        self.end(grace_s)
        if self._ending:
            await self._ending

    def _handler(self, method: str) -> Any:
        """Return the handler of a method.

        The handler reads the one message itself, in place of gRPC, so that a call can be refused unread.
        """

        async def answer(_: object, call: Any) -> bytes:
            return await self._logged(method, call)

        return grpc.stream_unary_rpc_method_handler(answer)

    async def _logged(self, method: str, call: Any) -> bytes:
        """Answer a call, or end it with a status; log and count the call."""
        started = time.perf_counter()
        noticed: dict[str, Any] = {}  # for the log
        status = int(HTTPStatus.BAD_REQUEST)  # of a client that goes away, as over HTTP
        headers = headers_of(call.invocation_metadata())
        request_id = id_of(headers)
        call.set_trailing_metadata(((HEADER.lower(), request_id),))
        try:
            answer = await self._answer(method, call, headers, State(noticed))
            status = int(HTTPStatus.OK)
            return answer
        except asyncio.CancelledError:
            noticed["problem"] = "disconnected"
            if method == INFER:
                self._server.metrics.failed(noticed.get("tag", ""), "disconnected")
            raise
        except Exception as error:
            problem = await noted(self._server, State(noticed), error, counted=method == INFER)
            status = problem.status
            if status == HTTPStatus.INTERNAL_SERVER_ERROR:
                logger.exception("cannot answer %s", method)
        finally:
            seconds = time.perf_counter() - started
            route = f"/{SERVICE}/{method}"
            self._server.metrics.served(route, "gRPC", status, seconds)
            if client := noticed.get("client"):
                self._server.metrics.asked(client, status)
            if self._server.settings.access_log:
                write(noticed, route, "gRPC", status, seconds, request_id)
        await call.abort(CODES[status], problem.detail, (*call.trailing_metadata(), *advice(problem)))
        return b""  # never, since `abort` raises

    async def _answer(self, method: str, call: Any, headers: Headers, state: State) -> bytes:
        """Return the answer to a call. Raises Problem, and errors as `infer` does."""
        server = self._server
        if server.settings.needs_key and method not in OPEN:
            let_in(server, headers, state)
        if method in ADMIN:
            check_admin(server, bearer(headers))
        if method in SHARED_MEMORY:
            raise Problem(501, "not_supported", NO_SHARED_MEMORY)
        if method in OPEN:  # whose message is empty: nobody without a key keeps the messages of others waiting
            return messages.encoded(method, await METHODS[method](server, None))
        remaining_s = call.time_remaining()
        state.deadline = deadline_of(server, None if remaining_s is None else 1000 * remaining_s)
        with self._counted(), server.bodies.hold() as body:
            message = messages.decoded(method, await self._read(call, body, state.deadline))
            if method == INFER:
                return await self._infer(message, state)
            return messages.encoded(method, await METHODS[method](server, message))

    async def _infer(self, message: Any, state: State) -> bytes:
        async def receive() -> Received:
            return messages.received(message)

        name = full_name(message.model_name, message.model_version)
        left_s = state.deadline - self._server.scheduler.clock()
        with self._server.device.request():
            answer = await infer(self._server, state, name, receive, timeout_s=left_s)
        return messages.encoded_answer(answer)

    @contextmanager
    def _counted(self) -> Iterator[None]:
        """Count a call while the context is open. Raises Problem 503 `overloaded` if there are too many."""
        most = self._server.settings.max_waiting
        if self._calls >= most:
            raise Problem(503, "overloaded", f"{most:,} calls wait already", headers={"Retry-After": "1"})
        self._calls += 1
        try:
            yield
        finally:
            self._calls -= 1

    async def _read(self, call: Any, body: Body, deadline: float) -> bytes:
        """Return the message of a call, and count its bytes.

        gRPC delivers a message as a whole, so only as many are received at a time as all bodies together may hold; of
        one address at most half of these, so that messages that stall leave room for those of others.
        Raises Problem 503 if they hold too many bytes, Problem 413 for a message that gRPC has refused for its size.
        """
        # Kept by the calls of the address, not by the dictionary.
        share = self._shares.setdefault(address_of(call), asyncio.Semaphore(max(1, self._at_a_time // 2)))
        async with asyncio.timeout_at(deadline), share, self._reading:
            body.add(0)
            data = await call.read()
        if data is aio.EOF:
            most = self._server.settings.max_body_bytes
            raise Problem(413, "body_too_large", f"the call has no message, or one of more than {most:,} bytes")
        message: bytes = data
        body.add(len(message))
        return message


def headers_of(metadata: Iterable[tuple[str, str | bytes]]) -> Headers:
    """Return the metadata of a call as headers, whatever characters they have; binary values are left out."""
    return Headers(raw=[(name.encode(), value.encode()) for name, value in metadata if isinstance(value, str)])


def address_of(call: Any) -> str:
    """Return the address of the client of a call, without the port."""
    address: str = call.peer().rpartition(":")[0]
    return address


def advice(problem: Problem) -> list[tuple[str, str]]:
    """Return metadata about a problem: its stable code, and when gRPC's own retries should ask again."""
    found = [("convserve-code", problem.code)]
    if seconds := (problem.headers or {}).get("Retry-After"):
        found.append(("grpc-retry-pushback-ms", str(problem.more.get("retry_after_ms", 1000 * int(seconds)))))
    return found
