"""Frames between a front and a device process, on a Unix socket: records of fixed length, and JSON for the rest."""

from __future__ import annotations

import asyncio
import json
from abc import abstractmethod
from enum import IntEnum
from struct import Struct
from typing import Any, cast

from service.errors import Problem

# Number of the front's slots and bytes of each. The reply has the front's column and the bytes of the device's table.
# A descriptor of shared memory comes with each.
HELLO = Struct("<II")
HELLO_S = 5.0  # seconds in which the other side must say hello
HEAD = Struct("<IB")  # length of the payload, kind
# Slot and its generation, engine, client, height, width, channels, deadline in s (machine's clock), decoding in ms.
IMAGE = Struct("<IIIHHHHdf")
# Slot and its generation, engine, client, bytes of the JPEG, deadline, inspection in ms.
JPEG = Struct("<IIIHxxIdf")
CANCEL = Struct("<II")  # slot and its generation
# Slot and its generation, outcome, classes, size of the batch, milliseconds in queue and in inference.
ANSWER = Struct("<IIIIIff")


class Kind(IntEnum):
    """Kind of a frame, and who sends the frame."""

    IMAGES = 1  # front to device: many IMAGE
    CANCELS = 2  # front to device: many CANCEL
    ANSWERS = 3  # device to front: many ANSWER
    CALL = 4  # front to device: JSON {"id", "name", "arguments"}
    REPLY = 5  # device to front: JSON {"id", "result"} or {"id", "problem"}
    STATE = 6  # device to front: JSON, the engines of the device
    JPEGS = 7  # front to device: many JPEG


class AnswerStatus(IntEnum):
    """Status of one image in an ANSWER record."""

    OK = 0
    LATE = 1
    FAILED = 2
    CANCELLED = 3
    NO_ENGINE = 4
    REFUSED = 5  # a JPEG that the device's decoder refuses


class FramedProtocol(asyncio.Protocol):
    """Connection that sends and receives frames. Records of one turn of the event loop travel in one frame."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self._received = bytearray()
        self._records: dict[Kind, list[bytes]] = {}

    @abstractmethod
    def frame_received(self, kind: Kind, payload: bytes) -> None:
        """Handle one frame that has arrived whole."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport of the new connection."""
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass

    def data_received(self, data: bytes) -> None:
        """Split the received bytes into frames, and keep the rest."""
        received = self._received
        received += data
        begin = 0
        while len(received) - begin >= HEAD.size:
            length, kind = HEAD.unpack_from(received, begin)
            end = begin + HEAD.size + length
            if end > len(received):
                break
            self.frame_received(Kind(kind), bytes(received[begin + HEAD.size : end]))
            begin = end
        del received[:begin]

    def send(self, kind: Kind, payload: bytes) -> None:
        """Send one frame, unless the connection is closed."""
        if self.transport and not self.transport.is_closing():
            self.transport.write(HEAD.pack(len(payload), kind) + payload)

    def send_json(self, kind: Kind, message: Any) -> None:
        """Send one frame whose payload is JSON."""
        self.send(kind, json.dumps(message).encode())

    def send_record(self, kind: Kind, record: bytes) -> None:
        """Send a record together with all other records of this turn of the event loop."""
        records = self._records.setdefault(kind, [])
        records.append(record)
        if len(records) == 1:
            asyncio.get_running_loop().call_soon(self._flush, kind)

    def _flush(self, kind: Kind) -> None:
        self.send(kind, b"".join(self._records.pop(kind)))


def packed(problem: Problem) -> dict[str, Any]:
    """Return a problem as values that JSON can hold."""
    return {
        "status": problem.status,
        "code": problem.code,
        "detail": problem.detail,
        "headers": problem.headers,
        "more": problem.more,
    }


def unpacked(values: dict[str, Any]) -> Problem:
    """Return the problem that `packed` turned into JSON."""
    return Problem(values["status"], values["code"], values["detail"], headers=values["headers"], **values["more"])
