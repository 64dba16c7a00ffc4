"""HTTP application: routes, API keys, error handling and the request log."""

from __future__ import annotations

from fastapi import APIRouter, Depends, Response
from fastapi.responses import RedirectResponse
from fastapi_offline import FastAPIOffline
from starlette.types import ASGIApp

from service import errors
from service.context import ServerContext, Shared, let_in, problems, refuse
from service.fast_path import FastPath
from service.request_log import RequestLog
from service.routes import classify, models

DESCRIPTION = "Every CNN architecture of a lecture, LeNet-5 to SENet-154: predictions, costs and measured speed."

router = APIRouter()


def create_application(server: ServerContext) -> ASGIApp:
    """Return the ASGI application of `server`. Its documentation pages need no network and no API key."""
    api = FastAPIOffline(title="convserve", description=DESCRIPTION, redoc_url=None)
    api.state.server = server
    keys = [Depends(let_in)] if server.settings.api_keys else []
    for routes in (classify.router, models.router, router):
        api.include_router(routes, dependencies=keys)
    errors.install(api, refuse)
    return RequestLog(FastPath(api), server.metrics, server.settings.access_log)


@router.get("/", include_in_schema=False)
async def index() -> RedirectResponse:
    """Redirect a browser from the root to the documentation."""
    return RedirectResponse("/docs")


@router.get("/metrics", response_class=Response, responses=problems(401))
async def metrics(server: Shared) -> Response:
    """Return the metrics in Prometheus' text format."""
    text = server.metrics.text(server.catalog.slots)
    return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")
