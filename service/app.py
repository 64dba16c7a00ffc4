"""The BentoML service: what `bentoml serve` runs."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
from types import FrameType

import bentoml
import uvicorn.config
from _bentoml_impl.server import app as bentoml_app
from bentoml import get_current_service  # as an attribute of bentoml it would be searched for each time
from bentoml._internal.server.http import traffic
from opentelemetry.instrumentation import asgi
from pydantic import ValidationError
from starlette.types import ASGIApp, Receive, Scope, Send

from service.api import create_api
from service.server import make_server
from service.settings import Settings

logger = logging.getLogger("bentoml.convserve")

try:
    SETTINGS = Settings()
except ValidationError as error:
    wrong = [f"CONVSERVE_{str(item['loc'][0]).upper()}: {item['msg']}" for item in error.errors()]
    raise SystemExit(f"error: {'; '.join(wrong)}") from error

BENTOML_PATHS = {"/livez", "/readyz", "/healthz", "/schema.json"}


async def mounted(scope: Scope, receive: Receive, send: Send) -> None:
    """Our routes, of the service that this process made."""
    await get_current_service().asgi(scope, receive, send)


class OursFirst(bentoml_app.ContextMiddleware):  # type: ignore[misc]
    """The last middleware: what is not BentoML's to answer comes to our routes at once, and not by its router."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] == "http" and scope["path"] not in BENTOML_PATHS:
            await mounted(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)


def left_out(app: ASGIApp, **_: object) -> ASGIApp:
    """In the place of a middleware."""
    return app


bentoml_app.ContextMiddleware = OursFirst
# Requests are bounded by our own deadlines. BentoML's timeout, which cannot be configured away, makes a task of each
# request, and keeps it in memory until the time has passed, whenever it was answered.
traffic.TimeoutMiddleware = left_out  # type: ignore[assignment, misc]
# What makes spans costs a request a tenth of a millisecond even where none is kept.
if not SETTINGS.tracing:
    asgi.OpenTelemetryMiddleware = left_out  # type: ignore[assignment, misc]

# BentoML lets uvicorn choose, and does so after it has imported us.
uvicorn.config.HTTP_PROTOCOLS["auto"] = "service.protocol:BoundedProtocol"


# One worker, since the scheduler owns the device. In place of BentoML's metrics, which label by raw path, and of its
# access log are ours.
@bentoml.service(
    name="convserve",
    workers=1,
    traffic={"timeout": SETTINGS.timeout_s + 5},
    metrics={"enabled": False},
    logging={"access": {"enabled": False}},
)
@bentoml.asgi_app(mounted, path="/")
class ConvServe:
    """Serves every published model."""

    def __init__(self) -> None:
        server = make_server(SETTINGS)
        self.catalog, self.asgi = server.catalog, create_api(server)
        self._ready = self._leaving = False
        self._tasks: set[asyncio.Task[None]] = set()

    @bentoml.on_startup  # type: ignore[untyped-decorator]
    async def start(self) -> None:
        """Begin to load; meanwhile the process is alive and not ready."""
        if not self.catalog.models:
            logger.warning("no model is published: run `make serve`, or `python -m training publish`")
        self._tasks.add(asyncio.create_task(self._load()))
        self._leave_on(signal.SIGTERM)

    async def _load(self) -> None:
        try:
            if SETTINGS.load == "start":
                await self.catalog.load_all()
        except Exception:  # what could be loaded is served
            logger.exception("cannot load all that is published")
        # full collections, which would walk all that was loaded and free none of it, stopped the world for 150 ms
        gc.collect()
        gc.freeze()
        self._ready = True
        await self.catalog.follow()

    def _leave_on(self, number: signal.Signals) -> None:
        """At a signal first turn unready, so that no new request is sent here, and stop when that has been seen."""
        stop = signal.getsignal(number)
        loop = asyncio.get_running_loop()

        def leave(number: int, frame: FrameType | None) -> None:
            self._leaving = True
            if callable(stop):
                loop.call_soon_threadsafe(loop.call_later, SETTINGS.drain_s, stop, number, frame)

        signal.signal(number, leave)

    async def __is_ready__(self) -> bool:
        """For /readyz: whether all that is to be loaded at the start has been tried, and we are not about to stop."""
        return self._ready and not self._leaving
