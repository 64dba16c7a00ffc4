"""No model: a route that reads the body and answers the same to all, mounted in BentoML as convserve's are."""

from __future__ import annotations

import bentoml
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send


async def route(scope: Scope, receive: Receive, send: Send) -> None:
    """Like an answer of the others."""
    await Request(scope, receive).body()
    await JSONResponse({"predictions": [{"label": "", "probability": 1.0}]})(scope, receive, send)


@bentoml.service(workers=1, traffic={"timeout": 15}, metrics={"enabled": False})  # as service/app.py
@bentoml.asgi_app(route, path="/")
class Empty:
    """Nothing else."""
