"""Empty route without a model: it reads the body and returns a constant, mounted in BentoML as convserve's routes."""

from __future__ import annotations

import bentoml
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send


async def route(scope: Scope, receive: Receive, send: Send) -> None:
    """Read the body, and return JSON of the same form as the other servers."""
    await Request(scope, receive).body()
    await JSONResponse({"predictions": [{"label": "", "probability": 1.0}]})(scope, receive, send)


@bentoml.service(workers=1, traffic={"timeout": 15}, metrics={"enabled": False})  # as in service/app.py
@bentoml.asgi_app(route, path="/")
class Empty:
    """Service with the empty route alone."""
