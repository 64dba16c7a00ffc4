"""BentoML service, which `bentoml serve` runs."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
from types import FrameType

import bentoml
from bentoml import get_current_service  # `bentoml.get_current_service` would be looked up on each call
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from service import framework_patches
from service.address import default_host
from service.application import create_application
from service.context import make_context
from service.settings import check_runtime, read_settings, unknown

logger = logging.getLogger("bentoml.convserve")

SETTINGS = read_settings()
check_runtime(SETTINGS)


async def mounted(scope: Scope, receive: Receive, send: Send) -> None:
    """Pass a request to the application of this process's service."""
    await get_current_service().asgi(scope, receive, send)


framework_patches.route_past_bentoml(mounted)
framework_patches.leave_out_timeouts()
if not SETTINGS.tracing:
    framework_patches.leave_out_tracing()
framework_patches.use_http_protocol("service.http_limits:BoundedProtocol")
framework_patches.check_address()


# There is one worker, since the scheduler owns the device. BentoML's metrics, which label by raw path, and BentoML's
# access log are off: service/metrics.py and service/request_log.py replace them.
@bentoml.service(
    name="convserve",
    workers=1,
    http={"host": default_host()},  # BENTOML_HOST and --host override the default
    traffic={"timeout": SETTINGS.timeout_s + 5},
    metrics={"enabled": False},
    logging={"access": {"enabled": False}},
)
@bentoml.asgi_app(mounted, path="/")
class ConvServe:
    """Service that serves every published model."""

    def __init__(self) -> None:
        server = make_context(SETTINGS)
        self.catalog, self.tuner, self.asgi = server.catalog, server.tuner, create_application(server)
        self._ready = self._leaving = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._tuning: asyncio.Task[None] | None = None

    @bentoml.on_startup  # type: ignore[untyped-decorator]
    async def start(self) -> None:
        """Begin to load models. Until they are loaded the process is alive but not ready."""
        if problem := self._nothing_readable():
            logger.error(problem)
        elif not self.catalog.models:
            logger.warning("no model is published: run `make serve`, or `python -m training publish`")
        self._warn()
        self._tasks.add(asyncio.create_task(self._load()))
        self._leave_on(signal.SIGTERM)

    def _warn(self) -> None:
        """Log a warning for each setting that may be a mistake."""
        for name in unknown():
            logger.warning("%s is not a setting, and is ignored", name)
        for name, tag in SETTINGS.pins.items():
            if tag not in self.catalog.models:
                logger.warning("CONVSERVE_PINS: %s is %s, which is not published", name, tag)
        if "dataset" in SETTINGS.model_fields_set and SETTINGS.dataset not in self.catalog.datasets:
            logger.warning("CONVSERVE_DATASET: no published model is of %s", SETTINGS.dataset)

    async def _load(self) -> None:
        try:
            if SETTINGS.load == "start":
                await self.catalog.load_all()
        except Exception:  # the models that could be loaded are served
            logger.exception("cannot load every published model")
        # Full collections stopped the process for 150 ms: they would walk all loaded objects and free none of them.
        gc.collect()
        gc.freeze()
        self._ready = True
        if self._leaving:
            return
        async with asyncio.TaskGroup() as group:
            self._tuning = group.create_task(self.tuner.run())
            await self.catalog.follow()

    def _leave_on(self, number: signal.Signals) -> None:
        """On a signal, report not ready, so that no new requests are routed here, and stop after `drain_s` seconds."""
        stop = signal.getsignal(number)
        loop = asyncio.get_running_loop()

        def leave(number: int, frame: FrameType | None) -> None:
            self._leaving = True
            if self._tuning:
                loop.call_soon_threadsafe(self._tuning.cancel)
            if callable(stop):
                loop.call_soon_threadsafe(loop.call_later, SETTINGS.drain_s, stop, number, frame)

        signal.signal(number, leave)

    def _nothing_readable(self) -> str | None:
        """Return an error if there are published models and the server cannot serve any of them."""
        if self.catalog.models or not (unserved := self.catalog.unserved()):
            return None
        return f"no published model can be served: {'; '.join(unserved)}"

    async def __is_ready__(self) -> bool:
        """Return True for /readyz once every load of the start has been tried, until the service is about to stop.

        Raises HTTPException 503, which BentoML sends as text, with the reason while the service is not ready.
        """
        reason = "about to stop" if self._leaving else self._nothing_readable() if self._ready else "loading models"
        if reason:
            raise HTTPException(503, reason)
        return True
