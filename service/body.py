"""The body of a request: never more of it than is allowed, and the image in it."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from fastapi import Request
from python_multipart.multipart import parse_options_header
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from service.errors import Problem

MAX_FIELDS = 20


async def read_image(request: Request, max_bytes: int) -> bytes:
    """The image's bytes, held in memory: the body itself, or the file in the multipart part `image`.

    Problem 413 if the body is larger than `max_bytes`: at once if its length is declared, else when it has come
    to be; 400 if a form is broken or has no such part.
    """
    if request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        return await read_part(request, max_bytes)
    return b"".join([chunk async for chunk in limited(request, max_bytes)])


async def limited(request: Request, max_bytes: int) -> AsyncGenerator[bytes, None]:
    """The body as it comes in."""
    too_large = Problem(
        413,
        "body_too_large",
        f"the body may have at most {max_bytes:,} bytes",
        headers={"Connection": "close"},  # or the server would go on to read what it has refused
    )
    if int(request.headers.get("content-length", 0)) > max_bytes:
        raise too_large
    received = 0
    async for chunk in request.stream():
        received += len(chunk)
        if received > max_bytes:
            raise too_large
        yield chunk


async def read_part(request: Request, max_bytes: int) -> bytes:
    """The file in the part `image`."""
    _, options = parse_options_header(request.headers["content-type"])
    if options.get(b"charset", b"utf-8").lower() != b"utf-8":  # Python has codecs that take minutes for a megabyte
        raise Problem(400, "broken_multipart", "the form's charset must be utf-8")
    parser = MultiPartParser(request.headers, limited(request, max_bytes), max_files=1, max_fields=MAX_FIELDS)
    parser.spool_max_size = 0  # no limit of its own: nothing goes to disk
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise Problem(400, "broken_multipart", error.message) from error
    part = form.get("image")
    if not isinstance(part, UploadFile):
        raise Problem(400, "empty_image", "the form has no whole file in a part named `image`")
    return await part.read()
