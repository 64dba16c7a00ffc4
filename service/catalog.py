"""Catalogue of models: known architectures, and published and loaded models."""

from __future__ import annotations

import asyncio
import difflib
import logging
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from engines.measured import records
from engines.published import store
from service.architectures import read_cards
from service.errors import Problem
from service.loading import Loader, ServedModel, Slot
from service.schema import ArchitectureCard
from service.settings import EMBEDDED_DATASET, Settings

logger = logging.getLogger("bentoml.convserve")


class Catalog:
    """Known architectures and the published models in the store, rescanned while the server runs."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.architectures = read_cards()
        self.models: dict[str, ServedModel] = {}
        self._seen: dict[Path, int] | None = None
        self.loader = Loader(settings, lambda: (slot for _, slot in self.slots))
        self.scan()

    def scan(self) -> None:
        """Read the store: add new models, drop models that are gone. Requests in progress keep their model."""
        seen = store.manifests()
        if seen == self._seen:
            return
        models = {}
        for published in store.published():
            tag = published.manifest.tag
            model = models[tag] = self.models.get(tag) or ServedModel(published, ())
            # the same weights may have been published again
            model.published, model.records = published, records.find_all(published)
        self.models, self._seen = models, seen

    async def follow(self) -> None:
        """Rescan the store every `scan_s` seconds, load new models and retry failed loads. Never returns."""
        while True:
            await asyncio.sleep(self._settings.scan_s)
            try:
                await asyncio.to_thread(self.scan)
                await self.load_all()
            except Exception:  # one bad store entry must not stop the others
                logger.exception("cannot rescan the model store")

    def architecture(self, name: str) -> ArchitectureCard:
        """Return the card of an architecture. Raises Problem 404 with similar names if the name is unknown."""
        if name not in self.architectures:
            near = difflib.get_close_matches(name, self.architectures)
            hint = f"; did you mean {' or '.join(near)}?" if near else ""
            raise Problem(404, "unknown_model", f"there is no model {name!r}{hint}", near=near)
        return self.architectures[name]

    def published(self, architecture: str) -> list[ServedModel]:
        """Return the published models of one architecture, newest first."""
        models = [model for model in self.models.values() if model.manifest.architecture == architecture]
        return sorted(models, key=lambda model: model.manifest.created, reverse=True)

    def find(self, name: str) -> ServedModel:
        """Return the model for a full tag, `architecture@dataset`, or an architecture (of the default data set).

        Several models can match: the newest that has been loaded once is returned, else the newest whose load has not
        failed, else the newest. Raises Problem 404 for an unknown name, 409 for a known architecture without weights.
        """
        name = self._settings.pins.get(name, name)
        if name in self.models:
            return self.models[name]
        architecture, _, dataset = name.partition("@")
        dataset = dataset or self._settings.dataset
        card = self.architecture(architecture.partition(":")[0])
        published = self.published(card.name)
        matching = [model for model in published if architecture == card.name and dataset == model.manifest.dataset]
        if matching:
            proven = [model for model in matching if model.proven]
            not_failed = [model for model in matching if model.chosen.status != "failed"]
            return (proven or not_failed or matching)[0]
        tags = [model.manifest.tag for model in published]
        known = {self._settings.dataset} | {model.manifest.dataset for model in self.models.values()}
        if ":" in name or dataset not in known:
            raise Problem(404, "unknown_model", f"{name!r} is not published", near=tags)
        raise no_weights(card.name, dataset, tags)

    def ready(self, dataset: str) -> list[ServedModel]:
        """Return the loaded models of a data set."""
        return [model for model in self.models.values() if model.manifest.dataset == dataset and model.chosen.queue]

    @property
    def slots(self) -> Iterator[tuple[str, Slot]]:
        """Slots of all models with their tags: each default engine, and each engine of a requested precision."""
        return ((tag, slot) for tag, model in self.models.items() for slot in model.slots.values())

    async def load_all(self) -> None:
        """Load the models that were never loaded, one after another. A failed load does not stop the others.

        A model that replaces a loaded older version is always loaded. Any other is loaded only if the setting `load` is
        "start" and the memory budget has room.
        """
        for model in list(self.models.values()):
            if model.proven or model.chosen.retry_at > time.monotonic():
                continue
            fits = self._settings.load == "start" and self.loader.has_room(model)
            if fits or self._replaces(model):
                with suppress(Problem):  # the error is logged, and in the model's status
                    await self.loader.queue(model)

    def _replaces(self, new: ServedModel) -> bool:
        """Return True if an older version of the model is loaded."""
        return any(
            old.chosen.queue
            and old.manifest.dataset == new.manifest.dataset
            and old.manifest.created < new.manifest.created
            for old in self.published(new.manifest.architecture)
        )


def no_weights(architecture: str, dataset: str, others: list[str]) -> Problem:
    """Return Problem 409 `no_weights`; for the embedded data set with the command that trains the weights."""
    detail = f"{architecture} has no published weights for {dataset}"
    if others:
        detail += f"; there are {', '.join(others)}"
    if dataset != EMBEDDED_DATASET:
        return Problem(409, "no_weights", detail, near=others)
    command = (
        f"python -m training {architecture} --data {dataset} && "
        f"python -m training publish checkpoints/{architecture}-{dataset}"
    )
    return Problem(409, "no_weights", f"{detail}; make them: {command}", near=others, command=command)
