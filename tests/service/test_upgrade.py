"""Tests of requests that offer another protocol, as curl's --http2 and Java's HttpClient do with every request."""

from __future__ import annotations

import re
import socket
import time

import httpx
import pytest

from tests.service.test_server import DIGIT, HEAD, classify

H2C = "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n"
WEBSOCKET = "Connection: keep-alive, Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
LENGTH = f"Content-Length: {len(DIGIT)}\r\n"
CHUNKED = b"%x\r\n%b\r\n0\r\n" % (len(DIGIT), DIGIT)
OFFERED = f"{HEAD}{H2C}{LENGTH}\r\n".encode() + DIGIT
PLAIN = f"{HEAD}{LENGTH}\r\n".encode() + DIGIT


def answers(server: httpx.Client, *packets: bytes, count: int = 1) -> list[tuple[int, str]]:
    """Send packets on one connection; return status and label, or code, of `count` answers."""
    answer = b""
    with socket.create_connection((server.base_url.host, server.base_url.port or 80), timeout=10) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for number, packet in enumerate(packets):
            time.sleep(0.02 if number else 0)
            connection.sendall(packet)
        while len(re.findall(rb"\r\n\r\n\{.*?\}(?=HTTP|$)", answer, re.DOTALL)) < count:
            answer += connection.recv(65536) or pytest.fail(f"closed after {answer!r}")
    texts = re.findall(rb"HTTP/1\.1 (\d+)[^{]*\{.*?\"(?:label|code)\":\"(.*?)\"", answer, re.DOTALL)
    return [(int(status), text.decode()) for status, text in texts]


@pytest.mark.parametrize(
    "head",
    [
        H2C,
        WEBSOCKET,
        "Connection: Upgrade\r\nUpgrade: TLS/1.0\r\n",
        "Connection: Upgrade\r\nConnection: HTTP2-Settings\r\nUpgrade: h2c\r\nUpgrade: foo/2\r\n",
        "Connection: close, Upgrade\r\nUpgrade: h2c\r\n",
        "Upgrade: h2c\r\n",
        "Connection: Upgrade\r\n",
    ],
)
@pytest.mark.parametrize("chunked", [False, True])
def test_an_offer_of_another_protocol_is_ignored(server: httpx.Client, head: str, chunked: bool) -> None:
    framing, body = ("Transfer-Encoding: chunked\r\n", CHUNKED + b"\r\n") if chunked else (LENGTH, DIGIT)
    request = f"{HEAD}{head}{framing}\r\n".encode()
    assert answers(server, request + body) == answers(server, request, body) == [(200, "7")]


def test_offers_may_be_split_pipelined_and_repeated(server: httpx.Client) -> None:
    seven = (200, "7")
    cuts = [1, 30, len(HEAD) + 20, OFFERED.index(b"\r\n\r\n") + 2, len(OFFERED) - 5]
    pieces = [OFFERED[start:end] for start, end in zip([0, *cuts], [*cuts, len(OFFERED)], strict=True)]
    assert answers(server, *pieces) == [seven]
    nothing = f"GET /models/nosuch HTTP/1.1\r\nHost: x\r\n{WEBSOCKET}\r\n".encode()
    expected = [seven, seven, seven, (404, "unknown_model"), seven]
    assert answers(server, OFFERED + OFFERED + PLAIN + nothing + OFFERED, count=5) == expected
    assert answers(server, OFFERED, PLAIN, OFFERED, count=3) == [seven] * 3
    trailers = f"{HEAD}{H2C}Transfer-Encoding: chunked\r\n\r\n".encode() + CHUNKED + b"X-A: y\r\n\r\n"
    assert answers(server, trailers + PLAIN, count=2) == [seven] * 2


def test_a_client_that_waits_for_100_continue_gets_it(server: httpx.Client) -> None:
    head = f"{HEAD}{H2C}{LENGTH}Expect: 100-continue\r\n\r\n".encode()
    with socket.create_connection((server.base_url.host, server.base_url.port or 80), timeout=10) as connection:
        connection.sendall(head)
        assert connection.recv(65536).startswith(b"HTTP/1.1 100")
        connection.sendall(DIGIT)
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    "rest",
    [
        b"Content-Length: 5\r\n\r\nhello, and more than was said",
        b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
        b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        b"Transfer-Encoding: chunked\r\n\r\nxyz\r\n",
        b"Transfer-Encoding: chunked\r\n\r\n0\r\n" + b"X-A: y\r\n" * 8192,
        b"X-A: " + b"x" * 400_000,
        b"Content-Length: 0\r\n\r\n" + f"GET /models HTTP/1.1\r\nHost: x\r\n{H2C}\r\n".encode() * 40,
    ],
    ids=lambda rest: repr(rest[:40]),
)
def test_every_limit_holds_for_an_offer(server: httpx.Client, rest: bytes) -> None:
    answer = b""
    with socket.create_connection((server.base_url.host, server.base_url.port or 80), timeout=10) as connection:
        try:
            connection.sendall(f"{HEAD}{H2C}".encode() + rest)
            answer = b"".join(iter(lambda: connection.recv(65536), b""))
        except OSError:  # the server closed before everything was sent
            return
    assert b"malformed_request" in answer
    assert classify(server, DIGIT).status_code == 200
