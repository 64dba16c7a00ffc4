"""HTTP application: routes, API keys, error handling and the request log."""

from __future__ import annotations

from fastapi import APIRouter, Depends, Response
from fastapi_offline import FastAPIOffline
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service import errors
from service.context import ServerContext, Shared, known_parameters, needs_key, problems, refuse
from service.fast_path import FastPath
from service.inference_protocol import routes as inference_protocol
from service.request_log import RequestLog
from service.routes import classify, explain, models, page
from service.state_metrics import state_text

DESCRIPTION = "Every CNN architecture of a lecture, LeNet-5 to SENet-154: predictions, costs and measured speed."

router = APIRouter()


def create_application(server: ServerContext) -> ASGIApp:
    """Return the ASGI application of `server`. Its page and its documentation need no network and no API key."""
    api = FastAPIOffline(title="convserve", description=DESCRIPTION, redoc_url=None)
    api.state.server = server
    known = Depends(known_parameters)
    keys = [Depends(needs_key)] if server.settings.needs_key else []
    refusals = (422, 429) if server.settings.clients else (422,)
    responses = problems(*refusals)
    api.include_router(page.router)
    for routes in (classify.router, explain.router, models.router):
        api.include_router(routes, dependencies=[*keys, known], responses=responses)
    api.include_router(inference_protocol.health)
    api.include_router(inference_protocol.refused, dependencies=keys)
    of_protocol = inference_protocol.errors(*refusals)
    api.include_router(inference_protocol.router, dependencies=[*keys, known], responses=of_protocol)
    if server.settings.metrics_public:
        keys = []
    api.include_router(router, dependencies=[*keys, known], responses=responses)
    errors.install(api, refuse)
    return RequestLog(HeadAsGet(FastPath(api)), server.metrics, server.settings.access_log, server.leaving)


class HeadAsGet:
    """ASGI middleware that answers HEAD on every path that answers GET, with the same headers and no body."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, HEAD as GET."""
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return
        scope.setdefault("state", {})
        inner = {**scope, "method": "GET"}

        async def without_body(message: Message) -> None:
            if message["type"] == "http.response.body":
                message = {**message, "body": b""}
            await send(message)

        try:
            await self._app(inner, receive, without_body)
        finally:
            scope["route"] = inner.get("route")


@router.get("/metrics", response_class=Response, responses=problems(401))
async def metrics(server: Shared) -> Response:
    """Return the metrics in Prometheus' text format."""
    text = server.metrics.text(server.catalog.slots, server.device.left()) + state_text(server)
    return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")
