"""The body of a request: never more of it than is allowed, and the image in it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from fastapi import Request
from multipart import MultipartError, MultipartSegment, PushMultipartParser
from python_multipart.multipart import parse_options_header

from service.errors import Problem

MAX_PARTS = 20  # of a form
CLOSE = {"Connection": "close"}  # or the server would go on to read what it has refused


class Bodies:
    """The bytes that all requests together hold, while they are received and decoded."""

    def __init__(self, max_bytes: int, max_held_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._max_held_bytes = max_held_bytes
        self._held = 0
        self.count = 0

    @contextmanager
    def hold(self) -> Iterator[Body]:
        """A body to be read; its bytes count until the end."""
        body = Body(self)
        self.count += 1
        try:
            yield body
        finally:
            self.count -= 1
            self._held -= body.received

    def check(self, count: int) -> None:
        """Problem 413 if a body of so many bytes is too large."""
        if count > self._max_bytes:
            detail = f"the body may have at most {self._max_bytes:,} bytes"
            raise Problem(413, "body_too_large", detail, headers=CLOSE)

    def take(self, count: int) -> None:
        """So many more; Problem 503 if that is too much."""
        self._held += count
        if self._held > self._max_held_bytes:
            detail = "the bodies of other requests take all the memory there is for them"
            raise Problem(503, "overloaded", detail, headers=CLOSE | {"Retry-After": "1"})


class Body:
    """One request's."""

    def __init__(self, bodies: Bodies) -> None:
        self._bodies = bodies
        self.received = 0

    async def read(self, request: Request) -> bytes:
        """All of it; Problem 413 if it is too large: at once if its length is declared, else when it has come to be."""
        self._bodies.check(int(request.headers.get("content-length", 0)))
        chunks = []
        async for chunk in request.stream():
            self.received += len(chunk)
            self._bodies.take(len(chunk))
            self._bodies.check(self.received)
            chunks.append(chunk)
        return b"".join(chunks)


def image_of(body: bytes, content_type: str) -> bytes:
    """The body itself, or the file in the part `image` of a form; all of it in memory.

    Problem 400 if a form is broken or has no such part.
    """
    kind, options = parse_options_header(content_type)  # not multipart's, which wants odd boundaries quoted
    if kind != b"multipart/form-data":
        return body
    images: list[bytes] = []
    is_image = False
    try:
        # names are compared with an ASCII one only, so that any charset of theirs will do
        with PushMultipartParser(
            options.get(b"boundary", b""), max_segment_count=MAX_PARTS, header_charset="latin-1"
        ) as parser:
            for event in parser.parse(body):
                if isinstance(event, MultipartSegment):
                    if is_image := event.name == "image" and event.filename is not None:
                        images.append(b"")
                elif event and is_image:
                    images[-1] = event  # all of it, since the whole body is given at once
    except MultipartError as error:
        raise Problem(400, "broken_multipart", f"the form cannot be read: {error}") from error
    if not images:
        raise Problem(400, "empty_image", "the form has no file in a part named `image`")
    return images[0]
