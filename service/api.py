"""The HTTP application: its routes, who may ask, and what is told of each request."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import RedirectResponse
from fastapi.security import APIKeyHeader
from fastapi_offline import FastAPIOffline
from starlette.types import ASGIApp

from service import errors
from service.errors import Problem
from service.operations import Operations
from service.routes import classify, models
from service.server import Server, Shared, same

DESCRIPTION = "Every CNN architecture of a lecture, LeNet-5 to SENet-154: what each answers, costs and how fast it is."

router = APIRouter()


def create_api(server: Server) -> ASGIApp:
    """The application over `server`; its documentation needs no network, and no key."""
    api = FastAPIOffline(title="convserve", description=DESCRIPTION, redoc_url=None)
    api.state.server = server
    keys = [Depends(let_in)] if server.settings.api_keys else []
    for routes in (classify.router, models.router, router):
        api.include_router(routes, dependencies=keys)
    errors.install(api, count)
    return Operations(api, server.metrics, server.settings.access_log)


async def let_in(
    server: Shared, key: Annotated[str | None, Depends(APIKeyHeader(name="X-API-Key", auto_error=False))]
) -> None:
    """Problem 401 without one of the keys that are set."""
    # all are compared, and each in constant time
    if not sum(same(key or "", known) for known in server.settings.api_keys):
        raise Problem(401, "unauthorized", "an API key is needed, as the header X-API-Key")


def count(request: Request, problem: Problem) -> None:
    """Note for metrics and log what a request was answered with; count it if it was to classify."""
    request.state.problem = problem.code
    if request.url.path in {"/classify", "/compare"}:
        server: Server = request.app.state.server
        server.metrics.failed(getattr(request.state, "tag", ""), problem.code)


@router.get("/", include_in_schema=False)
async def index() -> RedirectResponse:
    """What a browser that knows no route is shown."""
    return RedirectResponse("/docs")


@router.get("/metrics", response_class=Response)
async def metrics(server: Shared) -> Response:
    """For Prometheus."""
    text = server.metrics.text(server.catalog.slots)
    return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")
