"""Device processes as a front sees them: their engines and expected times, and images sent to them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from math import prod
from mmap import PAGESIZE
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.published.maps import outputs_with_maps
from engines.published.plain_jpeg import Sampling
from service.admission import Admission, Answer, EngineQueue, PendingImage
from service.catalog import Catalog
from service.clients import Client
from service.cost import BatchCost
from service.device import Device, keep_from_collections
from service.errors import Problem
from service.link import DeviceLink, NoEngine, gone, linked
from service.loading import ServedModel, Slot, check_precision
from service.recent import WINDOW, Stages
from service.schema import Tuning
from service.settings import Settings
from service.slots import SLOT_BYTES

RETRY_S = 0.1  # between two tries to reach a device process
logger = logging.getLogger("bentoml.convserve")


class RemoteEngine:
    """Engine that runs in device processes."""

    lanes = 1

    def __init__(self, runtime: str, precision: str) -> None:
        self.runtime, self.precision = runtime, precision

    def infer(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Raise RuntimeError: a front sends images to the device process."""
        raise RuntimeError("this engine runs in another process")


class Replica:
    """Engine in one device process: the connection, the engine's number, and its row in the table."""

    def __init__(self, link: DeviceLink, state: dict[str, Any]) -> None:
        self.link, self.number, self._row = link, int(state["engine"]), int(state["row"])

    def figures(self) -> list[float]:
        """Return the images that wait, and the seconds of the backlog and one more, of one, and of the best batch."""
        return self.link.table.get(self._row)

    def tell(self, decoding: int, reserved: int) -> None:
        """Tell the other fronts how many images for the engine this front decodes, and how many are reserved."""
        place = self._row, self.link.column
        self.link.table.decoding[place], self.link.table.reserved[place] = decoding, reserved

    def decoding(self) -> int:
        """Return the number of images for the engine that all fronts decode."""
        return int(self.link.table.decoding[self._row].sum())

    def reserved(self) -> int:
        """Return the number of images for the engine that wait, in all fronts, for earlier ones of their request."""
        return int(self.link.table.reserved[self._row].sum())

    def expected_s(self, now: float) -> float:
        """Return the seconds until one more image would be answered."""
        return max(0.0, self.link.table.free_at - now) + self.figures()[1]


class RemoteQueue(EngineQueue):
    """Queue of an engine that device processes run; an image goes to the replica that is expected to answer first."""

    def __init__(self, tag: str, slot: str | None, state: dict[str, Any]) -> None:
        super().__init__(RemoteEngine(state["runtime"], state["precision"]), RemoteCost(self, state))
        self.tag, self.slot = tag, slot
        self._samplings: frozenset[Sampling] = frozenset()
        self.replicas: list[Replica] = []

    @property
    def samplings(self) -> frozenset[Sampling]:
        """Samplings of the plain JPEGs that every device decodes."""
        return self._samplings

    def serve_from(self, replicas: list[Replica], samplings: frozenset[Sampling]) -> None:
        """Send images to these replicas from now on, and JPEGs of these samplings undecoded."""
        self.replicas, self._samplings = replicas, samplings
        self.tell()

    def best(self, now: float) -> Replica:
        """Return the replica that is expected to answer first. Raises Problem 503 if there is none."""
        if not self.replicas:
            raise gone()
        if len(self.replicas) == 1:
            return self.replicas[0]
        return min(self.replicas, key=lambda replica: replica.expected_s(now))

    def tell(self) -> None:
        """Tell the other fronts how many images for this queue this front decodes, and how many are reserved."""
        for replica in self.replicas:
            replica.tell(self.decoding, self.reserved)

    def decoding_everywhere(self) -> int:
        """Return the number of images for this queue that all fronts decode."""
        return self.replicas[0].decoding() if self.replicas else self.decoding

    @property
    def depth(self) -> int:
        """Images that have not started to run, in all device processes and in the decoders of all fronts."""
        return self.decoding_everywhere() + sum(int(replica.figures()[0]) for replica in self.replicas)

    def ahead(self, images: int, client: Client | None = None) -> int:
        """Return the images before a new request's as `EngineQueue.ahead` does, those of all fronts and all clients."""
        if images == 1:
            return self.depth
        return self.depth + (self.replicas[0].reserved() if self.replicas else self.reserved)


class RemoteCost(BatchCost):
    """Predicted cost of an engine that device processes run."""

    def __init__(self, queue: RemoteQueue, state: dict[str, Any]) -> None:
        super().__init__({1: state["uncorrected_s"]}, 1)
        self._queue = queue
        self.best_batch: int = state["best_batch"]

    def __call__(self, batch: int) -> float:
        """Return the predicted seconds of a batch, interpolated between one image and the best batch."""
        queue = getattr(self, "_queue", None)
        if queue is None or not queue.replicas:
            return super().__call__(batch)
        one_s, batch_s = queue.replicas[0].figures()[2:]
        each_s = (batch_s - one_s) / (self.best_batch - 1) if self.best_batch > 1 else one_s
        return float(one_s + each_s * (batch - 1))

    def forget(self, now: float) -> None:
        """Let the device processes move their corrections back towards the benchmark, at most once a second."""
        if now > self._forgot_at + 1:
            self._forgot_at = now
            for replica in self._queue.replicas:
                task = asyncio.create_task(replica.link.call("forget", replica.number))
                task.add_done_callback(lambda done: done.exception())


class RemoteAdmission(Admission):
    """Admission by the tables of the device processes."""

    def __init__(self, device: RemoteDevice, max_waiting: int) -> None:
        super().__init__(max_waiting)
        self._device = device

    def expected_answer_s(self, queue: EngineQueue, images: int = 1) -> float:
        """Return the seconds until a new request would be answered, images in all fronts' decoders included."""
        assert isinstance(queue, RemoteQueue)
        now = self.clock()
        each_s = queue.cost(queue.cost.best_batch) / queue.cost.best_batch
        expected_s = queue.best(now).expected_s(now) + queue.decoding_everywhere() * each_s
        if images == 1:
            return expected_s
        more = queue.ahead(images) - queue.depth + images - 1
        return expected_s + more * each_s / len(queue.replicas)

    def began(self, queue: EngineQueue) -> None:
        """Count an image that is being decoded, for all fronts to see."""
        super().began(queue)
        assert isinstance(queue, RemoteQueue)
        queue.tell()

    def ended(self, queue: EngineQueue) -> None:
        """Count an image less that is being decoded."""
        super().ended(queue)
        assert isinstance(queue, RemoteQueue)
        queue.tell()

    def reserve(self, queue: EngineQueue, client: Client, images: int) -> None:
        """Note the reserved images, for all fronts to see."""
        super().reserve(queue, client, images)
        assert isinstance(queue, RemoteQueue)
        queue.tell()

    async def infer(self, queue: EngineQueue, image: PendingImage) -> Answer:
        """Return the answer of a device process. An engine that was unloaded meanwhile is loaded again, once."""
        assert isinstance(queue, RemoteQueue)
        replica = queue.best(self.clock())
        try:
            return await replica.link.infer(replica.number, image)
        except NoEngine:
            number = await replica.link.call("queue", queue.tag, queue.slot)
            try:
                return await replica.link.infer(number, image)
            except NoEngine:
                raise gone() from None


class RemoteDevice(Device):
    """Device processes of a server, each with its own engines."""

    def __init__(self, settings: Settings, catalog: Catalog, paths: Sequence[Path]) -> None:
        self._settings, self._catalog, self._paths = settings, catalog, paths
        self.admission = RemoteAdmission(self, settings.max_waiting)
        self._links: dict[Path, DeviceLink] = {}
        self._begun: set[Path] = set()  # device processes that have been ready
        self._queues: dict[tuple[str, str, str, str], RemoteQueue] = {}
        self._loading: set[asyncio.Task[Any]] = set()  # calls that go on while the first to be done answers
        self._behind = asyncio.Event()  # set when a device process has other models than this front

    @property
    def links(self) -> list[DeviceLink]:
        """Connections to device processes that have told their state."""
        return [link for link in self._links.values() if link.state and not link.lost.is_set()]

    @property
    def problem(self) -> str | None:
        """Reason why requests should not be routed here, or None.

        At the start every device process must have become ready; later one that is ready suffices.
        """
        problems = {
            path: link.state["problem"] for path, link in self._links.items() if link in self.links and link.state
        }
        self._begun |= {path for path, problem in problems.items() if problem is None}
        if None in problems.values() and len(self._begun) == len(self._paths):
            return None
        return next(filter(None, problems.values()), "the device process is being started")

    async def run(self) -> None:
        """Keep the connections to the device processes, and follow the model store. Never returns."""
        keep_from_collections()
        async with asyncio.TaskGroup() as group:
            for path in self._paths:
                group.create_task(self._keep_link(path))
            group.create_task(self._follow())

    async def _keep_link(self, path: Path) -> None:
        """Connect to a device process, again each time that the process has ended. Never returns."""
        while True:
            try:
                link = self._links[path] = await linked(
                    path, self._settings.max_waiting, self._slot_bytes(), self._changed
                )
                await link.lost.wait()
                logger.warning("%s: the device process has ended; it is being started again", path.stem)
            except OSError:
                pass  # the process is being started
            except Exception:  # the other device processes still answer
                logger.exception("%s: cannot connect to the device process", path.stem)
            await asyncio.sleep(RETRY_S)

    def _changed(self) -> None:
        """Take over the state of the device processes; look into the store if they have other models."""
        self.mirror()
        known = self._catalog.models.keys()
        if any(link.state["models"].keys() != known for link in self.links if link.state):
            self._behind.set()

    def _slot_bytes(self) -> int:
        """Return the bytes of a slot: room for the largest image, or all outputs, of any published model."""
        manifests = [model.manifest for model in self._catalog.models.values()]
        outputs = [outputs_with_maps(manifest.complexity, len(manifest.labels)) for manifest in manifests]
        needed = [
            max(prod(manifest.preprocess.shape), 4 * count) for manifest, count in zip(manifests, outputs, strict=True)
        ]
        return -(-max(SLOT_BYTES, *needed) // PAGESIZE) * PAGESIZE if needed else SLOT_BYTES

    async def _follow(self) -> None:
        """Rescan the store every `scan_s` seconds, and when a device process has found a change. Never returns."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._settings.scan_s):
                    await self._behind.wait()
            self._behind.clear()
            try:
                while not await self._catalog.rescan():  # the last scan is less than a second old
                    await asyncio.sleep(RETRY_S)
                self.mirror()
            except Exception:  # one bad store entry must not stop the others
                logger.exception("cannot rescan the model store")

    def mirror(self) -> None:
        """Give the models of the catalogue the states of their engines in the device processes."""
        for tag, model in self._catalog.models.items():
            states = [
                (link, link.state["models"][tag]) for link in self.links if link.state and tag in link.state["models"]
            ]
            if self.links and not states:
                continue  # withdrawn: its engines answer until this front has looked into the store too
            model.proven = any(state["proven"] for _, state in states)
            keys = dict.fromkeys(["", *(key for _, state in states for key in state["slots"])])
            model.slots = {
                key or None: self._slot(
                    tag, key, [(link, state["slots"][key]) for link, state in states if key in state["slots"]]
                )
                for key in keys
            }
        for queue in self._queues.values():
            queue.replicas = [replica for replica in queue.replicas if not replica.link.lost.is_set()]

    def _slot(self, tag: str, key: str, states: list[tuple[DeviceLink, dict[str, Any]]]) -> Slot:
        """Return the state of one engine over all device processes that have told theirs."""
        loaded = [(link, state) for link, state in states if "engine" in state]
        if not loaded:
            published: dict[str, Any] = {"status": "published", "error": None}
            known = {state["status"]: state for _, state in states}
            first = known.get("loading") or known.get("failed") or published
            return Slot(status=first["status"], error=first["error"])
        state = loaded[0][1]
        name = (tag, key, state["runtime"], state["precision"])
        queue = self._queues.setdefault(name, RemoteQueue(tag, key or None, state))
        queue.cost.best_batch, queue.cost.uncorrected_s = state["best_batch"], state["uncorrected_s"]
        # While self-tuning renews one device process after another, they may run different engines.
        same = [(link, own) for link, own in loaded if (own["runtime"], own["precision"]) == name[2:]]
        queue.serve_from(
            [Replica(link, own) for link, own in same],
            frozenset.intersection(*(frozenset(own["samplings"]) for _, own in same)),
        )
        return Slot(status="ready", queue=queue, memory_mb=sum(state["memory_mb"] for _, state in loaded))

    async def queue(self, model: ServedModel, precision: str | None = None) -> EngineQueue:
        """Return a queue as `Device.queue` does."""
        chosen = model.chosen.queue
        if precision and chosen and precision == chosen.engine.precision:
            precision = None
        check_precision(model, precision)
        slot = model.slots.get(precision)
        if slot and slot.queue:
            return slot.queue
        if not self.links:
            raise gone()
        await self._load(model.manifest.tag, precision)
        loaded = self._catalog.models[model.manifest.tag].slots
        own, default = (slot.queue if slot else None for slot in (loaded.get(precision), loaded[None]))
        queue = own or (default if default and default.engine.precision == precision else None)
        if queue is None:  # unloaded again at once, or the process has ended
            raise gone()
        return queue

    async def _load(self, tag: str, precision: str | None) -> None:
        """Let every device process load an engine, and return when the first has. Raises Problem if none can."""
        loading = [asyncio.create_task(link.call("queue", tag, precision)) for link in self.links]
        self._loading.update(loading)
        for task in loading:
            task.add_done_callback(self._loaded)
        errors = []
        for first in asyncio.as_completed(loading):
            try:
                await first
            except Problem as problem:
                errors.append(problem)
            else:
                return
        raise errors[0]

    def _loaded(self, call: asyncio.Task[Any]) -> None:
        """Forget a call that is done, and log its error: another device process may have answered for both."""
        self._loading.discard(call)
        if not call.cancelled() and (error := call.exception()):
            logger.warning("a device process cannot load an engine: %s", error)

    async def unload(self, model: ServedModel) -> None:
        """Unload engines as `Device.unload` does, in every device process."""
        for link in self.links:
            await link.call("unload", model.manifest.tag)

    async def recent(self, model: ServedModel) -> list[Stages]:
        """Return the latencies by stage of the last requests for a model, of every device process."""
        each = [await link.call("recent", model.manifest.tag) for link in self.links]
        return [tuple(stages) for recent in each for stages in recent[-(WINDOW // len(each)) :]]

    def answered(self, model: ServedModel, stages_ms: Stages) -> None:
        """Do nothing: the device process has kept the latencies."""

    def tuning(self, model: ServedModel) -> Tuning:
        """Return the state of a model's self-tuning in the first device process that has the model."""
        tag = model.manifest.tag
        for link in self.links:
            if link.state and tag in link.state["models"]:
                return Tuning.model_validate(link.state["models"][tag]["tuning"])
        return Tuning(reason="the device process is being started", running=None, left=[], failed={})

    def left(self) -> dict[str, int]:
        """Return the number of engines that self-tuning will still try of each loaded model, by tag."""
        return {tag: left for link in self.links if link.state for tag, left in link.state["left"].items()}

    @contextmanager
    def request(self) -> Iterator[None]:
        """Return a context without an effect: the device process stops self-tuning while it has an image."""
        yield
