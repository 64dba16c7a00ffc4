"""Errors as problem+json responses (RFC 9457)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from http import HTTPStatus
from math import ceil
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from service.admission import Late, Overloaded
from service.clients import LimitReached
from service.schema import ProblemDetails

MEDIA_TYPE = "application/problem+json"


class Problem(Exception):
    """Error that becomes a response. `code` is stable, `detail` is for people, `more` holds additional JSON members."""

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
        """Return the problem without its additional members."""
        title = HTTPStatus(self.status).phrase
        return ProblemDetails(title=title, status=self.status, code=self.code, detail=self.detail)

    def response(self) -> JSONResponse:
        """Return the problem as an application/problem+json response."""
        return JSONResponse(self.details().model_dump() | self.more, self.status, self.headers, MEDIA_TYPE)


def worst_of(problems: Sequence[Problem], **more: Any) -> Problem:
    """Return the first problem of the highest status, with more JSON members, as the answer to a request of several."""
    worst = max(problems, key=lambda problem: problem.status)
    return Problem(worst.status, worst.code, worst.detail, headers=worst.headers, **worst.more | more)


def install(api: FastAPI, refuse: Callable[[Request, Exception], Awaitable[Response]]) -> None:
    """Register `refuse` as the handler of every error of `api`."""
    kinds = (Problem, RequestValidationError, HTTPException, ClientDisconnect)
    for kind in (*kinds, Overloaded, Late, LimitReached, TimeoutError):
        api.add_exception_handler(kind, refuse)
    api.add_exception_handler(Exception, refuse)


def as_problem(error: Exception) -> Problem:
    """Return the problem with which the server answers an error."""
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
        case LimitReached():
            problem = Problem(429, "limit_reached", str(error), headers=error.headers)
        case ClientDisconnect():
            problem = Problem(400, "disconnected", "the client went away")
        case _:
            problem = Problem(500, "internal_error", "internal error; the server's log has the details")
    return problem


def overloaded(error: Overloaded) -> Problem:
    """Return Problem 503 `overloaded` with queue depth, and the retry time in ms and (Retry-After) in whole seconds."""
    return Problem(
        503,
        "overloaded",
        str(error),
        headers={"Retry-After": str(ceil(error.retry_after_s))},
        queue_depth=error.depth,
        retry_after_ms=ceil(1000 * error.retry_after_s),
    )


def invalid(error: RequestValidationError) -> Problem:
    """Return Problem 422 `invalid_parameter` whose detail names each invalid parameter."""
    details = [f"{'.'.join(map(str, item['loc'][1:]))}: {item['msg']}" for item in error.errors()]
    return Problem(422, "invalid_parameter", "; ".join(details))


def of_http(error: HTTPException) -> Problem:
    """Convert an error of Starlette's, such as 404 or 405, into a problem."""
    code = HTTPStatus(error.status_code).phrase.lower().replace(" ", "_")
    headers = dict(error.headers) if error.headers else None
    if headers and headers.get("Allow") == "GET":
        headers["Allow"] = "GET, HEAD"
    return Problem(error.status_code, code, str(error.detail), headers=headers)
