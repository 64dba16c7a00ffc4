"""HTTP/1.1 protocol of uvicorn with added bounds: size of heads, time to receive a head, and pipelined requests.

The protocol also ignores every offer to change the protocol (`Upgrade`), as RFC 9110, section 7.8, allows.
"""

from __future__ import annotations

import asyncio

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from service.errors import MEDIA_TYPE, Problem
from service.fair_accept import Connections

MAX_HEAD_BYTES = 65536  # first line, headers and trailers together
HEAD_S = 10.0  # seconds to receive a head
MAX_AHEAD = 16  # requests sent before the first of them is answered
PER_HEADER = 64  # bytes that a header costs beside its characters
FRAMING = {b"connection", b"content-length", b"transfer-encoding"}  # headers that say where a request ends


class BoundedProtocol(HttpToolsProtocol):
    """Connection of HTTP/1.1 with bounds on heads, their time and pipelined requests."""

    _head = 0  # bytes of the current head so far
    _held = 0  # bytes since the last callback of the parser, which may hold all of them
    _head_timer: asyncio.TimerHandle | None = None  # runs while no request is in progress
    _repeating = False  # the parser reads a head that was read before, see `_replace_parser`

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the timer for the head of the first request."""
        super().connection_made(transport)
        self._head_timer = self.loop.call_later(HEAD_S, transport.close)

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel the timer of the head when the connection ends."""
        self._set_timer(False)
        if Connections.current:
            Connections.current.closed()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse bytes; refuse the request when unparsed bytes exceed MAX_HEAD_BYTES."""
        self._held += len(data)
        self._unset_keepalive_if_required()
        try:
            self._parse(data)
        except httptools.HttpParserError:
            message = "Invalid HTTP request received."
            self.logger.warning(message)
            self.send_400_response(message)
        if self.transport.is_closing():
            return
        if self._held > MAX_HEAD_BYTES:
            self.send_400_response("a header or a chunk's extension is too long")
        self._set_timer(self.cycle is None or self.cycle.response_complete)

    def _parse(self, data: bytes) -> None:
        """Feed bytes to the parser, and to a new parser each time a request offers another protocol.

        At such an offer the parser stops, and takes all further bytes for the other protocol's.
        """
        while True:
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as offer:
                data = data[offer.args[0] :]
                self._replace_parser()
            else:
                return

    def _replace_parser(self) -> None:
        """Replace the parser by one that has read the current request's head without the offer, and goes on after it.

        The head's callbacks do nothing the second time.
        """
        head = [b"POST / HTTP/%s\r\n" % self.parser.get_http_version().encode()]
        head += [b"%s: %s\r\n" % header for header in self.headers if header[0] in FRAMING]
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn's parser
        self._repeating = True
        self.parser.feed_data(b"".join([*head, b"\r\n"]))
        self._repeating = False

    def _should_upgrade(self) -> bool:
        """Return False: there is no other protocol, and no route for WebSocket."""
        return False

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
        if self._repeating:
            return
        self._head = 0
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        """Count the bytes of a piece of the URL."""
        if self._repeating:
            return
        self._add(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Count the bytes of a header or trailer."""
        if self._repeating:
            return
        self._add(len(name) + len(value) + PER_HEADER)
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Refuse the request if too many wait on the connection."""
        if self._repeating:
            return
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
        if self.parser.should_upgrade():  # the body is still to come, from another parser
            return
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """Answer with problem 400 `malformed_request` and close the connection."""
        body = Problem(400, "malformed_request", msg).details().model_dump_json().encode()
        head = f"content-type: {MEDIA_TYPE}\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
        self.transport.write(STATUS_LINE[400] + head.encode() + body)
        self.transport.close()
