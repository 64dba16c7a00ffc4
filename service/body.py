"""Body of a request: reading it within limits of size, and extracting the image."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from fastapi import Request
from multipart import MultipartError, MultipartSegment, PushMultipartParser
from python_multipart.multipart import parse_options_header

from service.errors import Problem

PART = "image"  # name of a form's part with an image
MAX_PARTS = 20  # parts in a form
MAX_NAMES = 200  # characters of the parts' names in an error
CLOSE = {"Connection": "close"}  # without this header the server would go on reading the refused body


class Bodies:
    """Account of the body bytes that all requests hold together while bodies are received and decoded."""

    def __init__(self, max_bytes: int, max_held_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._max_held_bytes = max_held_bytes
        self._held = 0
        self.count = 0

    @contextmanager
    def hold(self) -> Iterator[Body]:
        """Yield a body to read; its bytes count until the context ends."""
        body = Body(self)
        self.count += 1
        try:
            yield body
        finally:
            self.count -= 1
            self._held -= body.received

    def check(self, count: int) -> None:
        """Raise Problem 413 `body_too_large` if a body of `count` bytes is too large."""
        if count > self._max_bytes:
            detail = f"the body may have at most {self._max_bytes:,} bytes"
            raise Problem(413, "body_too_large", detail, headers=CLOSE)

    def take(self, count: int) -> None:
        """Count `count` more bytes. Raises Problem 503 `overloaded` if all bodies together hold too many."""
        self._held += count
        if self._held > self._max_held_bytes:
            detail = "the bodies of other requests take all the memory there is for them"
            raise Problem(503, "overloaded", detail, headers=CLOSE | {"Retry-After": "1"})


class Body:
    """Body of one request; `received` counts the bytes so far."""

    def __init__(self, bodies: Bodies) -> None:
        self._bodies = bodies
        self.received = 0

    async def read(self, request: Request) -> bytes:
        """Read and return the whole body.

        Raises Problem 413 if the body is too large: at once if its length is declared, else when the limit is reached.
        Raises Problem 503 if all bodies together are too large.
        """
        self._bodies.check(int(request.headers.get("content-length", 0)))
        chunks = []
        async for chunk in request.stream():
            self.add(len(chunk))
            chunks.append(chunk)
        return b"".join(chunks)

    def add(self, count: int) -> None:
        """Count `count` more bytes, until the context of the body ends. Raises Problem as `read` does."""
        self.received += count
        self._bodies.take(count)
        self._bodies.check(self.received)


def image_of(body: bytes, content_type: str) -> bytes:
    """Return the image bytes of a body: the body itself, or the part `image` of a form; an empty part is passed over.

    A part needs no file name (RFC 7578). Raises Problem 400 if a form is broken or has no part named `image`, Problem
    422 if the form has several images.
    """
    # Not multipart's own parser of this header, which requires quotes around unusual boundaries.
    kind, options = parse_options_header(content_type)
    if kind != b"multipart/form-data":
        return body
    try:
        parts = list(parts_of(body, options.get(b"boundary", b""), MAX_PARTS))
    except MultipartError as error:
        raise Problem(400, "broken_multipart", f"the form cannot be read: {error}") from error
    images = [content for name, content in parts if name == PART]
    if not images:
        names = ", ".join(repr(name) for name, _ in parts)[:MAX_NAMES]
        found = f"; its parts are {names}" if names else ""
        raise Problem(400, "empty_image", f"the form has no part named `{PART}`{found}")
    images = list(filter(None, images))
    if len(images) > 1:
        raise Problem(422, "several_images", f"the form has {len(images)} images; this route takes one")
    return images[0] if images else b""


def parts_of(body: bytes, boundary: bytes, most: int) -> Iterator[tuple[str, bytes]]:
    """Yield the name and the content of each part of a form.

    Raises MultipartError when the iteration arrives at a fault, or at more than `most` parts.
    """
    name, content = "", b""
    # Part names are only compared with an ASCII name, so their charset does not matter.
    with PushMultipartParser(boundary, max_segment_count=most, header_charset="latin-1") as parser:
        for event in parser.parse(body):
            if isinstance(event, MultipartSegment):
                name, content = event.name, b""
            elif event:
                content = bytes(event)  # the whole part, since the parser receives the whole body at once
            else:
                yield name, content
