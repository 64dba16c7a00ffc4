"""Shares of a name's requests for another model: canaries, which answer, and shadows, which are only compared."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from random import random
from typing import TYPE_CHECKING

from service.admission import Answer, Late, Overloaded
from service.batches import Picture, RefusedJpeg
from service.catalog import Catalog
from service.clients import SHADOWS, current
from service.errors import Problem
from service.loading import ServedModel
from service.settings import TrafficShare

if TYPE_CHECKING:
    from service.context import ServerContext

MOST_SHADOWS = 64  # images under way; beyond them none is copied
logger = logging.getLogger("bentoml.convserve")


class TrafficSplits:
    """Splits of the settings, and the shadows' images that are under way."""

    def __init__(self, splits: Mapping[str, TrafficShare]) -> None:
        self._canaries = {name: split for name, split in splits.items() if split.to}
        self._shadows = {name: split for name, split in splits.items() if split.shadow}
        self._running: set[asyncio.Task[None]] = set()

    def canary(self, catalog: Catalog, name: str, precision: str | None) -> ServedModel | None:
        """Return the model that answers a request for a name in the usual model's place, or None.

        A canary that is not published, or not loaded in the requested precision, is passed over.
        """
        split = self._canaries.get(name)
        if split is None or random() >= split.share:  # noqa: S311 (no secret)
            return None
        model = catalog.models.get(split.to or "")
        slots = model.slots if model else {}
        loaded = (slots[key].queue for key in (None, precision) if key in slots)
        return model if any(queue and precision in {None, queue.engine.precision} for queue in loaded) else None

    def copy(self, server: ServerContext, model: ServedModel, picture: Picture, answer: Answer) -> None:
        """Let the shadow of a model have a share of its pictures too, if it takes the same pixels and has its classes.

        A shadow that is not loaded is passed over, since its loading could unload a model that is asked for.
        """
        for name, split in self._shadows.items():
            shadow = server.catalog.models.get(split.shadow or "")
            if (
                shadow
                and shadow is not model
                and shadow.chosen.queue
                and shadow.manifest.preprocess == model.manifest.preprocess
                and shadow.manifest.labels == model.manifest.labels
                and len(self._running) < MOST_SHADOWS
                and random() < split.share  # noqa: S311 (no secret)
                and is_name_of(server.catalog, name, model)
            ):
                task = asyncio.create_task(self._compare(server, model, shadow, picture, answer))
                self._running.add(task)
                task.add_done_callback(self._running.discard)

    async def _compare(
        self, server: ServerContext, model: ServedModel, shadow: ServedModel, picture: Picture, answer: Answer
    ) -> None:
        """Run a picture on the shadow, and count whether its first class is the model's."""
        current.set(SHADOWS)
        try:
            queue = await server.device.queue(shadow)
            with queue.in_use(), server.device.request():
                deadline = server.scheduler.clock() + server.settings.timeout_s
                async with asyncio.timeout(server.settings.timeout_s):
                    with server.scheduler.admit(queue, deadline) as place:
                        found = await place.infer(picture)
            outcome = "agrees" if found.logits.argmax() == answer.logits.argmax() else "differs"
        except (Late, Overloaded, Problem, RefusedJpeg, TimeoutError):
            outcome = "refused"
        except Exception:
            logger.exception("%s cannot answer as a shadow", shadow.manifest.tag)
            outcome = "failed"
        server.metrics.compared(model.manifest.tag, shadow.manifest.tag, outcome)


def is_name_of(catalog: Catalog, name: str, model: ServedModel) -> bool:
    """Return True if a name means a model now."""
    try:
        return catalog.find(name) is model
    except Problem:
        return False
