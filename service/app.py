"""The BentoML service: what `bentoml serve` runs."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
from types import FrameType

import bentoml
from bentoml import get_current_service  # as an attribute of bentoml it would be searched for each time
from pydantic import ValidationError
from starlette.types import Receive, Scope, Send

from service import framework_patches
from service.application import create_application
from service.context import make_context
from service.settings import Settings

logger = logging.getLogger("bentoml.convserve")

try:
    SETTINGS = Settings()
except ValidationError as error:
    wrong = [f"CONVSERVE_{str(item['loc'][0]).upper()}: {item['msg']}" for item in error.errors()]
    raise SystemExit(f"error: {'; '.join(wrong)}") from error


async def mounted(scope: Scope, receive: Receive, send: Send) -> None:
    """Pass a request to the application of the service that this process made."""
    await get_current_service().asgi(scope, receive, send)


framework_patches.route_past_bentoml(mounted)
framework_patches.leave_out_timeouts()
if not SETTINGS.tracing:
    framework_patches.leave_out_tracing()
framework_patches.use_http_protocol("service.http_limits:BoundedProtocol")


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
        server = make_context(SETTINGS)
        self.catalog, self.asgi = server.catalog, create_application(server)
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
