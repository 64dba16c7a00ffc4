"""Log of requests: a request id, metrics by route, a JSON line in the log, and spans by stage."""

from __future__ import annotations

import re
import sys
import time
from asyncio import Event
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from random import getrandbits
from typing import Any

from opentelemetry.trace import Tracer, get_current_span
from pydantic_core import to_json
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.metrics import Metrics

ID = re.compile(r"[\w.-]{1,128}", re.ASCII)
HEADER = "X-Request-ID"
METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}


class RequestLog:
    """ASGI middleware that logs and counts each request.

    Metrics are labelled with the route's template, not the path, so that clients cannot create new labels.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, log: bool, leaving: Event) -> None:
        """Write lines if `log` says so; once `leaving` is set, close each connection after its answer."""
        self._app, self._metrics, self._log, self._leaving = app, metrics, log, leaving

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on with a request id, then log and count it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        request_id = id_of(Headers(scope=scope))
        status = 500

        async def send_on(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers[HEADER] = request_id
                if self._leaving.is_set():
                    headers["Connection"] = "close"
            await send(message)

        try:
            await self._app(scope, receive, send_on)
        finally:
            seconds = time.perf_counter() - started
            route = getattr(scope.get("route"), "path", "")
            method = scope["method"] if scope["method"] in METHODS else ""
            self._metrics.served(route, method, status, seconds)
            if client := scope.get("state", {}).get("client"):
                self._metrics.asked(client, status)
            if self._log:
                write(scope.get("state", {}), route, method, status, seconds, request_id)


def id_of(headers: Headers) -> str:
    """Return the id that the client gave the request, or a new one."""
    header = headers.get(HEADER, "")
    return header if ID.fullmatch(header) else f"{getrandbits(128):032x}"


def write(state: Mapping[str, Any], route: str, method: str, status: int, seconds: float, request_id: str) -> None:
    """Write the line of a request to the log; `state` has the code of its problem, the model's tag and the client."""
    line = {
        "timestamp": datetime.now(UTC),
        "request_id": request_id,
        "method": method,
        "route": route,
        "status": status,
        "code": state.get("problem"),
        "model": state.get("tag"),
        "ms": round(1000 * seconds, 3),
    }
    if client := state.get("client"):
        line["client"] = client
    with suppress(OSError):  # a log that cannot be written fails no request
        sys.stdout.write(to_json(line).decode() + "\n")
        sys.stdout.flush()


def trace(tracer: Tracer, stages_ms: dict[str, float]) -> None:
    """Record a span for each stage, back to back and ending now, if the request's own span is recorded."""
    if not get_current_span().is_recording():
        return
    at = time.time_ns() - int(1e6 * sum(stages_ms.values()))
    for stage, milliseconds in stages_ms.items():
        span = tracer.start_span(stage, start_time=at)
        at += int(1e6 * milliseconds)
        span.end(end_time=at)
