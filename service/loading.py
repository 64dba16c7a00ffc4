"""Loading and unloading of engines, within a memory budget, with retries after failures."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from math import ceil

import numpy as np

from engines.measured import records
from engines.measured.memory import resident_mb
from engines.measured.records import EngineRecord, Speed
from engines.measured.select_engine import choose, log_passed_over
from engines.published.manifest import Manifest, ManifestError
from engines.published.maps import MAPS
from engines.published.store import PublishedModel
from engines.runtimes.engine import Engine, EngineError, GpuEngine
from engines.runtimes.registry import EngineSpec, open_engine
from service.admission import EngineQueue
from service.cost import BatchCost, batch_sizes, cost_of
from service.errors import Problem
from service.gpu_jpeg import open_decoder
from service.schema import Status
from service.settings import Settings

FILE_TIMES = 2.5  # memory of a loaded network, in multiples of its file's size, roughly
RETRY_S = 60.0  # the longest wait before a failed load is tried again
logger = logging.getLogger("bentoml.convserve")


class Busy(Exception):
    """Raised when an engine would fit into the memory budget only if engines in use were unloaded."""


@dataclass(eq=False)
class Slot:
    """State of one engine of a model. While the engine is loaded, `queue` is its queue and `memory_mb` its memory.

    `spec` is the engine that the records chose when the engine was loaded, or when a better one was last looked for.
    """

    status: Status = "published"
    queue: EngineQueue | None = None
    spec: EngineSpec | None = None
    error: str | None = None
    loading: asyncio.Task[EngineQueue] | None = None
    failures: int = 0
    retry_at: float = 0.0  # seconds on time.monotonic's clock, as is `used_at`
    used_at: float = 0.0
    memory_mb: float = 0.0

    def failed(self, error: Exception) -> None:
        """Record a failed load and the time of the next try; the wait doubles with each failure, up to 60 s."""
        self.failures += 1
        self.retry_at = time.monotonic() + min(2.0 ** min(self.failures, 10), RETRY_S)
        self.status, self.error = "failed", str(error)

    def loaded(self, queue: EngineQueue) -> None:
        """Record a successful load; requests are served from `queue` from now on."""
        self.queue, self.status, self.error, self.failures = queue, "ready", None, 0
        self.used_at = time.monotonic()

    def release(self) -> None:
        """Unload the engine; queued requests are still answered."""
        if self.queue:
            self.queue, self.status, self.memory_mb = None, "published", 0.0


@dataclass(eq=False)
class ServedModel:
    """Published model with the records of its engines on this machine and the state of each engine.

    `slots` maps a requested precision to its engine; the key None is the default engine, which serves requests without
    a precision. `proven` is True once the model has been loaded to classify.
    """

    published: PublishedModel
    records: tuple[EngineRecord, ...]
    slots: dict[str | None, Slot] = field(default_factory=lambda: {None: Slot()})
    proven: bool = False

    @property
    def manifest(self) -> Manifest:
        """Manifest of the published model."""
        return self.published.manifest

    @property
    def chosen(self) -> Slot:
        """Slot of the default engine, which serves requests without a precision."""
        return self.slots[None]

    def supports_scaled_jpeg(self, engine: Engine) -> bool:
        """Return True if a record shows that JPEGs decoded at a reduced size get the same answers."""
        of_engine = (
            record
            for record in self.records
            if (record.runtime, record.precision) == (engine.runtime, engine.precision)
        )
        return any(record.scaled_jpeg and not record.scaled_jpeg.problem for record in of_engine)


class Loader:
    """Loader of engines, one at a time. `slots` returns the slots of all models, which share the memory budget."""

    def __init__(self, settings: Settings, slots: Callable[[], Iterable[Slot]]) -> None:
        self._settings = settings
        self._slots = slots
        self.changed: Callable[[], None] = lambda: None  # called when a state that others see changes
        self._one_at_a_time = asyncio.Lock()  # so that the growth of memory is one engine's

    async def queue(self, model: ServedModel, precision: str | None = None) -> EngineQueue:
        """Return the queue of the model's default engine or of a precision's, and load the engine if necessary.

        Raises Problem 409 if the model was not published in the precision, 503 if the engine cannot be loaded.
        """
        if precision and precision == self._chosen_precision(model):
            precision = None
        check_precision(model, precision)
        slot = model.slots.setdefault(precision, Slot())
        slot.used_at = time.monotonic()
        if slot.queue:
            return slot.queue
        if slot.loading is None:
            if slot.retry_at > time.monotonic():
                raise not_loadable(model, slot)
            slot.loading = asyncio.create_task(self._load(model, slot, precision))
        return await asyncio.shield(slot.loading)

    def _chosen_precision(self, model: ServedModel) -> str:
        """Return the precision of the default engine, loaded or not."""
        if model.chosen.queue:
            return model.chosen.queue.engine.precision
        return self._choice(model, None).precision

    def _choice(self, model: ServedModel, precision: str | None) -> EngineSpec:
        """Return the engine that the records choose for a requested precision, or for none; for MAPS OpenVINO's."""
        if precision == MAPS:  # asked for rarely, so that a plan for a GPU would not pay
            return EngineSpec("openvino", MAPS)
        return choose(model.records, self._settings.runtime, precision or self._settings.precision)

    async def renew(self, model: ServedModel) -> None:
        """Replace each loaded engine of a model that the records no longer choose, without a failed request.

        The new engine is loaded beside the old one, which answers until then. If the memory budget has no room for
        both, or the new engine cannot be opened, the old one stays, and the log says so.
        """
        for precision, slot in list(model.slots.items()):
            choice = self._choice(model, precision)
            if slot.loading:
                with suppress(Problem):  # loaded by older records, perhaps
                    await asyncio.shield(slot.loading)
            if not slot.queue or slot.loading:
                continue
            if choice == slot.spec and self._renew_cost(model, slot.queue, choice):
                continue
            slot.spec = choice
            if not self._fits(self._need_mb(model, precision)):
                tag = model.manifest.tag
                logger.warning("%s keeps its engine: CONVSERVE_MEMORY_MB has no room for the faster beside it", tag)
                continue
            slot.loading = asyncio.create_task(self._replace(model, slot, precision))
            with suppress(Problem):  # the error is logged
                await asyncio.shield(slot.loading)

    def _renew_cost(self, model: ServedModel, queue: EngineQueue, spec: EngineSpec) -> bool:
        """Let a new benchmark predict the times of an engine that stays loaded.

        Returns False if the engine would get larger batches than before: a new engine is warmed up for these.
        """
        opened = (queue.engine.runtime, queue.engine.precision) == (spec.runtime, spec.precision)
        if opened and any(spec == spec_of(speed) for record in model.records for speed in record.speeds):
            cost = self._cost(model, queue.engine, spec)
            if cost.best_batch > queue.cost.best_batch:
                return False
            queue.cost = cost
            self.changed()
        return True

    async def _replace(self, model: ServedModel, slot: Slot, precision: str | None) -> EngineQueue:
        """Load the chosen engine, and let the slot serve from it. Raises Problem 503 if the engine cannot be loaded."""
        tag = model.manifest.tag
        try:
            queue, slot.spec, slot.memory_mb = await self._opened(model, precision)
        except Exception as error:  # the old engine goes on
            logger.error("%s keeps its engine: %s", tag, error)
            detail = f"{tag} cannot be loaded: {error}"
            raise Problem(503, "not_loadable", detail, headers={"Retry-After": "1"}) from error
        finally:
            slot.loading = None
        slot.loaded(queue)
        self.changed()
        engine = queue.engine
        logger.info("%s is served on %s, %s from now on, by its new records", tag, engine.runtime, engine.precision)
        same = model.slots.get(engine.precision)
        if precision is None and same and not same.loading:
            same.release()  # requests for this precision get the default engine from now on
        return queue

    def unload(self, model: ServedModel) -> None:
        """Unload a model's engines; queued requests are still answered. Raises Problem 409 while one is loading."""
        if any(slot.loading for slot in model.slots.values()):
            raise Problem(409, "loading", f"{model.manifest.tag} is being loaded")
        for slot in model.slots.values():
            slot.release()
        self.changed()

    async def _load(self, model: ServedModel, slot: Slot, precision: str | None) -> EngineQueue:
        tag = model.manifest.tag
        slot.status = "loading"
        self.changed()
        try:
            queue, slot.spec, slot.memory_mb = await self._opened(model, precision)
        except Busy as error:
            slot.status = "published"
            detail = f"{tag} cannot be loaded now: {error}"
            raise Problem(503, "not_loadable", detail, headers={"Retry-After": "1"}) from error
        except Exception as error:  # one bad model must not stop the others
            slot.failed(error)
            expected = isinstance(error, EngineError | ManifestError)
            logger.error("cannot load %s: %s", tag, error, exc_info=not expected)
            raise not_loadable(model, slot) from error
        finally:
            slot.loading = None
            self.changed()
        slot.loaded(queue)
        model.proven |= precision != MAPS  # these say nothing of the engine that classifies
        self.changed()
        logger.info("%s is ready on %s, %s", tag, queue.engine.runtime, queue.engine.precision)
        return queue

    async def _opened(self, model: ServedModel, precision: str | None) -> tuple[EngineQueue, EngineSpec, float]:
        """Make room for the chosen engine, open it in a thread; return its queue, the choice and its memory in MB."""
        named = precision or self._settings.precision
        slot = model.slots.get(precision)
        # Else a request waits for the loading.
        warm = bool(slot and slot.queue) or (precision is None and self._settings.load == "start")
        async with self._one_at_a_time:
            needed_mb = self._need_mb(model, precision)
            self._make_room(needed_mb)
            before_mb = resident_mb()
            queue, spec = await asyncio.to_thread(self._open, model, named, warm)
            # The growth can be too small, where the process reuses memory that it had freed.
            return queue, spec, max(resident_mb() - before_mb, needed_mb)

    def _make_room(self, needed_mb: float) -> None:
        """Unload the least recently used idle engines until `needed_mb` more fits into the memory budget.

        Raises EngineError if `needed_mb` exceeds the whole budget, Busy if engines in use would have to be unloaded.
        """
        budget_mb = self._settings.memory_mb
        if budget_mb is not None and needed_mb > budget_mb:
            raise EngineError(f"it needs {needed_mb:.0f} MB, more than CONVSERVE_MEMORY_MB")
        idle = [slot for slot in self._slots() if slot.queue and not slot.queue.users]
        idle.sort(key=lambda slot: slot.used_at)
        if not self._fits(needed_mb - sum(slot.memory_mb for slot in idle)):
            raise Busy(f"it needs {needed_mb:.0f} MB, and too little of CONVSERVE_MEMORY_MB is not in use")
        while not self._fits(needed_mb):
            idle.pop(0).release()
            self.changed()

    def has_room(self, model: ServedModel) -> bool:
        """Return True if the default engine fits into the memory budget without unloading another engine."""
        return self._settings.memory_mb is None or self._fits(self._need_mb(model, None))

    def has_room_beside(self, model: ServedModel, spec: EngineSpec) -> bool:
        """Return True if an engine of the model fits into the memory budget beside all that are loaded."""
        return self._fits(need_mb(model, spec))

    def _fits(self, needed_mb: float) -> bool:
        budget_mb = self._settings.memory_mb
        return budget_mb is None or sum(slot.memory_mb for slot in self._slots()) + needed_mb <= budget_mb

    def _need_mb(self, model: ServedModel, precision: str | None) -> float:
        """Return the memory of the engine that the records choose, in MB."""
        return need_mb(model, self._choice(model, precision))

    def _open(self, model: ServedModel, precision: str, warm: bool) -> tuple[EngineQueue, EngineSpec]:
        """Open the chosen engine, and return its queue and the choice.

        With `warm` the engine runs once at each power of two up to the largest batch that will be formed. If `auto`
        chose an engine that cannot be opened, the queue is that of an engine on OpenVINO.
        """
        settings, model.records = self._settings, records.find_all(model.published)
        choice = self._choice(model, precision)
        if settings.tune == "off":
            log_passed_over(model.records, settings.runtime, precision)

        def opened(spec: EngineSpec) -> EngineQueue:
            engine = open_engine(model.published, spec, max_batch=settings.max_batch)
            decoder = open_decoder(engine, model.manifest.preprocess) if settings.gpu_jpeg == "auto" else None
            queue = EngineQueue(engine, self._cost(model, engine, spec), decoder)
            if warm:
                warm_up(model, queue)
            return queue

        try:
            return opened(choice), choice
        except EngineError as error:
            if settings.runtime != "auto" or choice.runtime == "openvino":
                raise
            logger.warning("%s falls back to openvino: %s", model.manifest.tag, error)
        return opened(choose(model.records, "openvino", precision)), choice

    def _cost(self, model: ServedModel, engine: Engine, spec: EngineSpec) -> BatchCost:
        """Return the predicted cost of an engine, from its benchmark or from timing the engine now."""
        return cost_of(engine, spec, model.records, model.manifest.preprocess.shape, self._settings.max_batch)


def warm_up(model: ServedModel, queue: EngineQueue) -> None:
    """Run an engine once at each power of two up to the largest batch that will be formed, since a first run compiles.

    Raises EngineError if the engine cannot run a batch.
    """
    try:
        for batch in batch_sizes(queue.cost.best_batch)[1:]:
            shape = batch, *model.manifest.preprocess.shape
            if isinstance(queue.engine, GpuEngine):
                queue.engine.prepare(shape)
            else:
                queue.engine.infer(np.zeros(shape, np.uint8))
    except RuntimeError as error:
        raise EngineError(f"{queue.engine.runtime} cannot run {model.manifest.tag}: {error}") from error


def need_mb(model: ServedModel, spec: EngineSpec) -> float:
    """Return the memory of an engine in MB: as measured on this machine, else estimated from its file's size."""
    engine = (spec.runtime, spec.precision)
    speeds = (speed for record in model.records for speed in record.speeds)
    measured = (speed.memory_mb or 0.0 for speed in speeds if (speed.runtime, speed.precision) == engine)
    if most := max(measured, default=0.0):
        return most
    return model.manifest.graph_bytes(spec.precision) / 1e6 * FILE_TIMES


def spec_of(speed: Speed) -> EngineSpec:
    """Return the engine of a row of a benchmark."""
    return EngineSpec(speed.runtime, speed.precision, speed.streams, speed.threads)


def check_precision(model: ServedModel, precision: str | None) -> None:
    """Raise Problem 409 `no_precision` if a model was not published in a precision."""
    if precision and precision not in (*model.manifest.precisions, MAPS):
        tag, precisions = model.manifest.tag, model.manifest.precisions
        detail = f"{tag} is published in {', '.join(precisions)}, not in {precision}"
        raise Problem(409, "no_precision", detail, near=precisions)


def not_loadable(model: ServedModel, slot: Slot) -> Problem:
    """Return problem 503 `not_loadable` with the seconds until the next try."""
    detail = f"{model.manifest.tag} cannot be loaded: {slot.error}"
    seconds = max(1, ceil(slot.retry_at - time.monotonic()))
    return Problem(503, "not_loadable", detail, headers={"Retry-After": str(seconds)})
