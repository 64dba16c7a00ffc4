"""The BentoML service: what `bentoml serve` runs."""

from __future__ import annotations

import asyncio
import gc
import logging

import bentoml
from pydantic import ValidationError
from starlette.types import Receive, Scope, Send

from service.api import Server, create_api
from service.catalog import Catalog
from service.scheduler import Scheduler
from service.settings import Settings

logger = logging.getLogger("bentoml.convserve")

try:
    SETTINGS = Settings()
except ValidationError as error:
    wrong = [f"CONVSERVE_{str(item['loc'][0]).upper()}: {item['msg']}" for item in error.errors()]
    raise SystemExit(f"error: {'; '.join(wrong)}") from error


async def mounted(scope: Scope, receive: Receive, send: Send) -> None:
    """Our routes, of the service that this process made."""
    await bentoml.get_current_service().asgi(scope, receive, send)


# One worker, since the scheduler owns the device. BentoML's timeout, which answers otherwise than our errors,
# comes after ours; its metrics label by raw path, so ours stand in their place.
@bentoml.service(
    name="convserve",
    workers=1,
    traffic={"timeout": SETTINGS.timeout_s + 5},
    metrics={"enabled": False},
)
@bentoml.asgi_app(mounted, path="/")
class ConvServe:
    """Serves every published model."""

    def __init__(self) -> None:
        scheduler = Scheduler(SETTINGS.max_batch, SETTINGS.max_waiting)
        self.catalog = Catalog(SETTINGS)
        self.asgi = create_api(Server(SETTINGS, self.catalog, scheduler))
        self._loading: asyncio.Task[None] | None = None

    @bentoml.on_startup  # type: ignore[untyped-decorator]
    async def start(self) -> None:
        """Begin to load; meanwhile the process is alive and not ready."""
        if not self.catalog.models:
            logger.warning("no model is published: run `make serve`, or `python -m training publish`")
        self._loading = asyncio.create_task(self._load())

    async def _load(self) -> None:
        if SETTINGS.load == "start":
            await self.catalog.load_all()
        # BentoML keeps some forty objects a request until its timeout; full collections, which walk them all and
        # free none, stopped the world for 170 ms (p99 at one connection; 18 ms so)
        gc.freeze()
        gc.set_threshold(50_000, 20, 100)

    async def __is_ready__(self) -> bool:
        """For /readyz: whether all that is to be loaded at the start has been tried."""
        return self._loading is not None and self._loading.done()
