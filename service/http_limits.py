"""HTTP/1.1 protocol of uvicorn with added bounds: size of heads, time to receive a head, and pipelined requests."""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from service.errors import MEDIA_TYPE, Problem

MAX_HEAD_BYTES = 65536  # first line, headers and trailers together
HEAD_S = 10.0  # seconds to receive a head
MAX_AHEAD = 16  # requests sent before the first of them is answered
PER_HEADER = 64  # bytes that a header costs beside its characters


class BoundedProtocol(HttpToolsProtocol):
    """Connection of HTTP/1.1 with bounds on heads, their time and pipelined requests."""

    _head = 0  # bytes of the current head so far
    _held = 0  # bytes since the last callback of the parser, which may hold all of them
    _head_timer: asyncio.TimerHandle | None = None  # runs while no request is in progress

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the timer for the head of the first request."""
        super().connection_made(transport)
        self._head_timer = self.loop.call_later(HEAD_S, transport.close)

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel the timer of the head when the connection ends."""
        self._set_timer(False)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse bytes; refuse the request when unparsed bytes exceed MAX_HEAD_BYTES."""
        self._held += len(data)
        super().data_received(data)
        if self.transport.is_closing():
            return
        if self._held > MAX_HEAD_BYTES:
            self.send_400_response("a header or a chunk's extension is too long")
        self._set_timer(self.cycle is None or self.cycle.response_complete)

    def _set_timer(self, wanted: bool) -> None:
        if wanted and self._head_timer is None:
            self._head_timer = self.loop.call_later(HEAD_S, self.transport.close)
        elif not wanted and self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    # Callbacks of the parser. An exception raised in one of them ends in a 400.

    def _add(self, size: int) -> None:
        self._held = 0
        self._head += size
        if self._head > MAX_HEAD_BYTES:
            raise ValueError

    def on_message_begin(self) -> None:
        """Begin to count the head of a new request."""
        self._head = 0
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        """Count the bytes of a piece of the URL."""
        self._add(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Count the bytes of a header or trailer."""
        self._add(len(name) + len(value) + PER_HEADER)
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Refuse the request if too many wait on the connection."""
        if len(self.pipeline) >= MAX_AHEAD:
            raise ValueError
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Forget held bytes: the parser has passed on a piece of the body."""
        self._held = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Forget held bytes: the parser has passed on the whole request."""
        self._held = 0
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """Answer with problem 400 `malformed_request` and close the connection."""
        body = Problem(400, "malformed_request", msg).details().model_dump_json().encode()
        head = f"content-type: {MEDIA_TYPE}\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
        self.transport.write(STATUS_LINE[400] + head.encode() + body)
        self.transport.close()
