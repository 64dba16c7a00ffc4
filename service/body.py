"""The body of a request: never more of it than is allowed, and the image in it."""

from __future__ import annotations

from fastapi import Request
from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import Problem


class BodyLimit:
    """Refuses a body of more than `max_bytes`: at once if its length is declared, else when it has come to be."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, its body counted."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        too_large = Problem(413, "body_too_large", f"the body may have at most {self._max_bytes:,} bytes")
        if int(Headers(scope=scope).get("content-length", 0)) > self._max_bytes:
            await too_large.response()(scope, receive, send)
            return
        received = 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._max_bytes:
                raise too_large
            return message

        await self._app(scope, counted, send)


async def read_image(request: Request) -> bytes:
    """The image's bytes: the body itself, or the multipart part `image`, held in memory; Problem if there is none."""
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        return await request.body()
    parser = MultiPartParser(request.headers, request.stream(), max_files=1, max_fields=1)
    parser.spool_max_size = 0  # no limit: BodyLimit holds, and nothing goes to disk
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise Problem(400, "broken_multipart", error.message) from error
    part = form.get("image")
    if not isinstance(part, UploadFile):
        raise Problem(400, "empty_image", "the form has no file in a part named `image`")
    return await part.read()
