"""Device as the routes see the device: loading, admission, latencies and self-tuning, in this process or another."""

from __future__ import annotations

import asyncio
import gc
import logging
from abc import ABC, abstractmethod
from contextlib import AbstractContextManager

from service.admission import Admission, EngineQueue
from service.catalog import Catalog
from service.loading import ServedModel
from service.metrics import Metrics
from service.pulling import Puller
from service.recent import Recent, Stages
from service.scheduler import Scheduler
from service.schema import Tuning
from service.settings import Settings
from service.tuning import Tuner

logger = logging.getLogger("bentoml.convserve")


def keep_from_collections() -> None:
    """Keep the garbage collector from walking the objects that are there now, modules and engines.

    Full collections stopped a process for 150 ms, and freed none of those objects.
    """
    gc.collect()
    gc.freeze()


class Device(ABC):
    """Device that runs the engines of the published models."""

    admission: Admission

    @abstractmethod
    async def queue(self, model: ServedModel, precision: str | None = None) -> EngineQueue:
        """Return the queue of the model's default engine or of a precision's, and load the engine if necessary.

        Raises Problem 409 if the model was not published in the precision, 503 if the engine cannot be loaded.
        """

    @abstractmethod
    async def unload(self, model: ServedModel) -> None:
        """Unload a model's engines; queued requests are still answered. Raises Problem 409 while one is loading."""

    @abstractmethod
    async def recent(self, model: ServedModel) -> list[Stages]:
        """Return the latencies by stage of the last 1,000 requests for a model."""

    @abstractmethod
    def answered(self, model: ServedModel, stages_ms: Stages) -> None:
        """Keep the latencies of a request that has been answered."""

    @abstractmethod
    def tuning(self, model: ServedModel) -> Tuning:
        """Return the state of a model's self-tuning."""

    @abstractmethod
    def left(self) -> dict[str, int]:
        """Return the number of engines that self-tuning will still try of each loaded model, by tag."""

    @abstractmethod
    def request(self) -> AbstractContextManager[None]:
        """Return a context during which a request is in progress."""

    @abstractmethod
    async def run(self) -> None:
        """Load, renew and tune engines, or follow the process that does. Never returns."""

    @property
    @abstractmethod
    def problem(self) -> str | None:
        """Reason why requests should not be routed here, or None."""


class LocalDevice(Device):
    """Device whose engines run in this process."""

    def __init__(self, settings: Settings, catalog: Catalog, metrics: Metrics) -> None:
        self._settings, self._catalog = settings, catalog
        self.scheduler = Scheduler(settings.max_waiting)
        self.admission = self.scheduler
        self.tuner = Tuner(settings, catalog, metrics)
        self.latencies = Recent()
        self._puller = Puller(settings, metrics)
        self._loaded = False

    async def queue(self, model: ServedModel, precision: str | None = None) -> EngineQueue:
        """Return a queue as `Device.queue` does."""
        return await self._catalog.loader.queue(model, precision)

    async def unload(self, model: ServedModel) -> None:
        """Unload engines as `Device.unload` does."""
        self._catalog.loader.unload(model)

    async def recent(self, model: ServedModel) -> list[Stages]:
        """Return the latencies by stage of the last 1,000 requests for a model."""
        return self.latencies.of(model.manifest.tag)

    def answered(self, model: ServedModel, stages_ms: Stages) -> None:
        """Keep the latencies of a request that has been answered."""
        self.latencies.add(model.manifest.tag, stages_ms)

    def tuning(self, model: ServedModel) -> Tuning:
        """Return the state of a model's self-tuning."""
        return self.tuner.state(model)

    def left(self) -> dict[str, int]:
        """Return the number of engines that self-tuning will still try of each loaded model, by tag."""
        return self.tuner.left()

    def request(self) -> AbstractContextManager[None]:
        """Return a context during which self-tuning is stopped."""
        return self.tuner.paused()

    async def run(self) -> None:
        """Load the published models, then follow bucket and store, and tune engines. Never returns."""
        try:
            if self._settings.models:
                await self._puller.pull(wait=True)
                await self._catalog.rescan()
            if self._settings.load == "start":
                await self._catalog.load_all()
        except Exception:  # the models that could be loaded are served
            logger.exception("cannot load every published model")
        keep_from_collections()
        self._loaded = True
        self._catalog.loader.changed()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._puller.follow())
            group.create_task(self._catalog.follow())
            group.create_task(self.tuner.run())

    @property
    def problem(self) -> str | None:
        """Reason why requests should not be routed here, or None."""
        if not self._loaded:
            return "loading models"
        return None if self._catalog.models else self._puller.problem
