"""What goes wrong, as problem+json (RFC 9457)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from http import HTTPStatus
from math import ceil
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from service.scheduler import Late, Overloaded
from service.schema import ProblemDetails

MEDIA_TYPE = "application/problem+json"


class Problem(Exception):
    """An error to answer with; `code` is stable, `detail` is for people, `more` are members of its own."""

    def __init__(
        self, status: int, code: str, detail: str, *, headers: dict[str, str] | None = None, **more: Any
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.code = code
        self.detail = detail
        self.headers = headers
        self.more = more

    def details(self) -> ProblemDetails:
        """Without the members of its own."""
        title = HTTPStatus(self.status).phrase
        return ProblemDetails(title=title, status=self.status, code=self.code, detail=self.detail)

    def response(self) -> JSONResponse:
        """Render as application/problem+json."""
        return JSONResponse(self.details().model_dump() | self.more, self.status, self.headers, MEDIA_TYPE)


def install(api: FastAPI, refuse: Callable[[Request, Exception], Awaitable[Response]]) -> None:
    """Have every error of `api` answered by `refuse`."""
    for kind in (Problem, RequestValidationError, HTTPException, ClientDisconnect, Overloaded, Late, TimeoutError):
        api.add_exception_handler(kind, refuse)
    api.add_exception_handler(Exception, refuse)


def as_problem(error: Exception) -> Problem:
    """What is answered for an error."""
    match error:
        case Problem():
            problem = error
        case RequestValidationError():
            problem = invalid(error)
        case HTTPException():
            problem = of_http(error)
        case Overloaded():
            problem = overloaded(error)
        case Late() | TimeoutError():
            problem = Problem(504, "timeout", str(error) or "no answer in time", headers={"Connection": "close"})
        case ClientDisconnect():
            problem = Problem(400, "disconnected", "the client went away")
        case _:
            problem = Problem(500, "internal_error", "an error of the server's own; its log has it")
    return problem


def overloaded(error: Overloaded) -> Problem:
    """503: why, how many wait, and when to come again, to the millisecond and, as HTTP has it, in whole seconds."""
    return Problem(
        503,
        "overloaded",
        str(error),
        headers={"Retry-After": str(ceil(error.retry_after_s))},
        queue_depth=error.depth,
        retry_after_ms=ceil(1000 * error.retry_after_s),
    )


def invalid(error: RequestValidationError) -> Problem:
    """422, naming each parameter."""
    details = [f"{'.'.join(map(str, item['loc'][1:]))}: {item['msg']}" for item in error.errors()]
    return Problem(422, "invalid_parameter", "; ".join(details))


def of_http(error: HTTPException) -> Problem:
    """Starlette's own, such as 404 and 405."""
    code = HTTPStatus(error.status_code).phrase.lower().replace(" ", "_")
    headers = dict(error.headers) if error.headers else None
    return Problem(error.status_code, code, str(error.detail), headers=headers)
