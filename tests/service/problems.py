"""Readers of the problem in an answer, received by a client or from a socket."""

from __future__ import annotations

import json
import socket

import httpx


def problem(response: httpx.Response) -> tuple[int, str]:
    """Return status and code of a response, which must be a problem."""
    assert response.headers["content-type"] == "application/problem+json", response.text[:200]
    details = response.json()
    assert details["status"] == response.status_code
    assert details["detail"]
    return response.status_code, details["code"]


def answer_to(connection: socket.socket) -> tuple[int, str]:
    """Return status and code of the problem that the server writes before closing the connection."""
    answer = b"".join(iter(lambda: connection.recv(65536), b""))
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"content-type: application/problem+json" in head.lower(), answer[:400]
    return int(head.split()[1]), json.loads(body)["code"]
