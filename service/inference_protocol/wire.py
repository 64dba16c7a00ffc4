"""Bounds of a message of gRPC that are checked before the message is parsed.

Parsing makes an object of some 90 bytes of each two bytes of empty fields: a message of 10 MB becomes 450 MB.
"""

from __future__ import annotations

import math
from typing import Any

from google.protobuf.message import DecodeError

from service.errors import Problem
from service.inference_protocol.json_codec import MAX_VALUES

MAX_FIELDS = 1000  # in a message and the messages in it; 64 images are at most some 100 fields
MAX_TEXT = 10_000  # bytes of a name
MAX_PACKED = 8 * MAX_VALUES  # bytes of numbers
# By the number of each field: the bounds of the message that it is, or the most bytes that it may have.
Bounds = dict[int, "Bounds | float"]


def bounds(kind: Any) -> Bounds:
    """Return the bounds of the messages that have the descriptor `kind`."""
    return {field.number: bounds(field.message_type) if field.message_type else most(field) for field in kind.fields}


def most(field: Any) -> float:
    """Return the most bytes that a field other than a message may have."""
    if field.type == field.TYPE_BYTES:
        return math.inf
    return MAX_TEXT if field.type == field.TYPE_STRING else MAX_PACKED


def check(data: bytes, known: Bounds) -> None:
    """Walk over the fields of a message and of the messages in it.

    Raises Problem 413 for more fields or longer ones than a request needs, DecodeError for bytes that are no message.
    """
    left = MAX_FIELDS
    inner = [(0, len(data), known)]
    while inner:
        place, end, known = inner.pop()
        while place < end:
            left -= 1
            if left < 0:
                raise Problem(413, "body_too_large", f"more than {MAX_FIELDS:,} fields; send raw_input_contents")
            key, place = varint(data, place)
            match key & 7:
                case 0:
                    _, place = varint(data, place)
                case 1:
                    place += 8
                case 2:
                    size, place = varint(data, place)
                    bound = known.get(key >> 3, math.inf)
                    if isinstance(bound, dict):
                        inner.append((place, place + size, bound))
                    elif size > bound:
                        raise Problem(413, "body_too_large", f"a field of {size:,} bytes; send raw_input_contents")
                    place += size
                case 5:
                    place += 4
                case _:  # a group, which the protocol has none of
                    raise DecodeError
        if place > end:
            raise DecodeError


def varint(data: bytes, place: int) -> tuple[int, int]:
    """Return the number at a place, and the place behind. Raises DecodeError if there is none."""
    number = 0
    for shift, byte in enumerate(data[place : place + 10]):
        number |= (byte & 127) << (7 * shift)
        if byte < 128:
            return number, place + shift + 1
    raise DecodeError
