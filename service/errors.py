"""What goes wrong, as problem+json (RFC 9457)."""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

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

    def response(self) -> JSONResponse:
        """As HTTP."""
        title = HTTPStatus(self.status).phrase
        content = {"title": title, "status": self.status, "code": self.code, "detail": self.detail, **self.more}
        return JSONResponse(content, self.status, self.headers, MEDIA_TYPE)


def install(api: FastAPI, count: Callable[[Request, Problem], None]) -> None:
    """Have every error of `api` counted, and answered as a problem."""

    def handle(kind: type[Exception], convert: Callable[[Any], Problem]) -> None:
        async def handler(request: Request, error: Exception) -> JSONResponse:
            problem = convert(error)
            count(request, problem)
            return problem.response()

        api.add_exception_handler(kind, handler)

    handle(Problem, lambda problem: problem)
    handle(RequestValidationError, invalid)
    handle(HTTPException, of_http)
    handle(ClientDisconnect, lambda _: Problem(400, "disconnected", "the client went away"))
    handle(Exception, lambda _: Problem(500, "internal_error", "an error of the server's own; its log has it"))


def invalid(error: RequestValidationError) -> Problem:
    """422, naming each parameter."""
    details = [f"{'.'.join(map(str, item['loc'][1:]))}: {item['msg']}" for item in error.errors()]
    return Problem(422, "invalid_parameter", "; ".join(details))


def of_http(error: HTTPException) -> Problem:
    """Starlette's own, such as 404 and 405."""
    code = HTTPStatus(error.status_code).phrase.lower().replace(" ", "_")
    headers = dict(error.headers) if error.headers else None
    return Problem(error.status_code, code, str(error.detail), headers=headers)
