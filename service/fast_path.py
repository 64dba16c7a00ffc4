"""Fast path to /classify around FastAPI's routing, whose overhead is as long as the inference of a small picture."""

from __future__ import annotations

import logging
from http import HTTPStatus
from urllib.parse import parse_qsl

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.types import Receive, Scope, Send

from service.context import ServerContext, check_parameters, let_in, refuse
from service.routes.classify import ClassifyQuery, classify, router

PATH = "/classify"
ROUTE = next(route for route in router.routes if getattr(route, "path", "") == PATH)
PARAMETERS = tuple(ClassifyQuery.model_fields)
logger = logging.getLogger("bentoml.convserve")


class FastPath:
    """ASGI application that answers POST /classify itself and passes all other requests to FastAPI.

    FastAPI documents /classify and would return the same answers.
    """

    def __init__(self, api: FastAPI) -> None:
        self._api = api
        self._server: ServerContext = api.state.server

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer POST /classify, or pass the request on."""
        if scope["type"] != "http" or scope["path"] != PATH or scope["method"] != "POST":
            await self._api(scope, receive, send)
            return
        scope.update(app=self._api, route=ROUTE)
        request = Request(scope, receive, send)
        try:
            response = await self._answer(request)
        except Exception as error:
            response = await refuse(request, error)
            if response.status_code == HTTPStatus.INTERNAL_SERVER_ERROR:
                logger.exception("cannot classify")
        await response(scope, receive, send)

    async def _answer(self, request: Request) -> Response:
        if self._server.settings.needs_key:
            let_in(self._server, request)
        return await classify(request, self._server, parse(request.scope["query_string"]))


def parse(query: bytes) -> ClassifyQuery:
    """Parse a query string; the last of a repeated parameter counts.

    Raises Problem 422 for an unknown parameter, RequestValidationError for a wrong value, as the route in FastAPI does.
    """
    values = dict(parse_qsl(query.decode("latin-1"), keep_blank_values=True))
    check_parameters(values, PARAMETERS)
    try:
        return ClassifyQuery.model_validate(values)
    except ValidationError as error:
        raise RequestValidationError([item | {"loc": ("query", *item["loc"])} for item in error.errors()]) from error
