"""Fast path to /classify, and to inference below /v2, around FastAPI's routing.

The overhead of the routing is as long as the inference of a small picture.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Awaitable, Callable
from functools import partial
from http import HTTPStatus
from urllib.parse import parse_qsl

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.routing import BaseRoute
from starlette.types import Receive, Scope, Send

from service.context import ServerContext, check_parameters, let_in, refuse
from service.inference_protocol import routes as inference_protocol
from service.inference_protocol.models import full_name
from service.routes.classify import ClassifyQuery, classify, router

PATH = "/classify"
ROUTE = next(route for route in router.routes if getattr(route, "path", "") == PATH)
PARAMETERS = tuple(ClassifyQuery.model_fields)
INFER = re.compile("/v2/models/([^/]+)(?:/versions/([^/]+))?/infer")
INFER_ROUTES = {  # by True for a path with a version
    "/versions/" in path: route
    for route in inference_protocol.router.routes
    if (path := getattr(route, "path", "")).endswith(inference_protocol.INFER)
}
logger = logging.getLogger("bentoml.convserve")


class FastPath:
    """ASGI application that answers POST /classify and inference itself, and passes all other requests to FastAPI.

    FastAPI documents these routes and would return the same answers.
    """

    def __init__(self, api: FastAPI) -> None:
        self._api = api
        self._server: ServerContext = api.state.server

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request to one of the routes, or pass the request on."""
        found = self._route(scope["path"]) if scope["type"] == "http" and scope["method"] == "POST" else None
        if found is None:
            await self._api(scope, receive, send)
            return
        route, answer = found
        scope.update(app=self._api, route=route)
        request = Request(scope, receive, send)
        try:
            response = await self._answer(request, answer)
        except Exception as error:
            response = await refuse(request, error)
            if response.status_code == HTTPStatus.INTERNAL_SERVER_ERROR:
                logger.exception("cannot classify")
        await response(scope, receive, send)

    def _route(self, path: str) -> tuple[BaseRoute, Callable[[Request], Awaitable[Response]]] | None:
        """Return the route of a path with the function that answers, or None for another route."""
        if path == PATH:
            return ROUTE, self._classify
        if match := INFER.fullmatch(path):
            name, version = match.groups("")
            return INFER_ROUTES[bool(version)], partial(self._infer, full_name(name, version))
        return None

    async def _answer(self, request: Request, answer: Callable[[Request], Awaitable[Response]]) -> Response:
        if self._server.settings.needs_key:
            let_in(self._server, request.headers, request.state)
        return await answer(request)

    async def _classify(self, request: Request) -> Response:
        return await classify(request, self._server, parse(request.scope["query_string"]))

    async def _infer(self, name: str, request: Request) -> Response:
        if query := request.scope["query_string"]:
            check_parameters(dict(parse_qsl(query.decode("latin-1"), keep_blank_values=True)), ())
        return await inference_protocol.answered(request, self._server, name)


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
