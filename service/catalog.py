"""Which models there are: known, published, loaded."""

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
    """The architectures we know, and the models published of them, as they come and go."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.architectures = read_cards()
        self.models: dict[str, ServedModel] = {}
        self._seen: dict[Path, int] | None = None
        self.loader = Loader(settings, lambda: (slot for _, slot in self.slots))
        self.scan()

    def scan(self) -> None:
        """See what is in the store: new models are added, those that are gone leave once nobody asks them."""
        seen = store.manifests()
        if seen == self._seen:
            return
        models = {}
        for entry in store.published():
            tag = entry.manifest.tag
            model = models[tag] = self.models.get(tag) or ServedModel(entry, ())
            model.published, model.records = entry, records.find_all(entry)  # the same weights, published again
        self.models, self._seen = models, seen

    async def follow(self) -> None:
        """From now on: take up what is published, and try again what could not be loaded."""
        while True:
            await asyncio.sleep(self._settings.scan_s)
            try:
                await asyncio.to_thread(self.scan)
                await self.load_all()
            except Exception:  # whatever is wrong with one entry must not stop the others
                logger.exception("cannot take up what is published")

    def architecture(self, name: str) -> ArchitectureCard:
        """Problem 404, with near names, if there is none."""
        if name not in self.architectures:
            near = difflib.get_close_matches(name, self.architectures)
            hint = f"; did you mean {' or '.join(near)}?" if near else ""
            raise Problem(404, "unknown_model", f"there is no model {name!r}{hint}", near=near)
        return self.architectures[name]

    def published(self, architecture: str) -> list[ServedModel]:
        """The models of one architecture, newest first."""
        found = [model for model in self.models.values() if model.manifest.architecture == architecture]
        return sorted(found, key=lambda model: model.manifest.created, reverse=True)

    def find(self, name: str) -> ServedModel:
        """The model meant by a full tag, `architecture@dataset`, or an architecture, of the default data set.

        Of several the newest that could be loaded. Problem 404 if it is not known, 409 if it is a known architecture
        without weights.
        """
        name = self._settings.pins.get(name, name)
        if name in self.models:
            return self.models[name]
        architecture, _, dataset = name.partition("@")
        dataset = dataset or self._settings.dataset
        card = self.architecture(architecture.partition(":")[0])
        published = self.published(card.name)
        meant = [model for model in published if architecture == card.name and dataset == model.manifest.dataset]
        if meant:
            able = [model for model in meant if model.proven] or [m for m in meant if m.chosen.status != "failed"]
            return (able or meant)[0]
        tags = [model.manifest.tag for model in published]
        known = {self._settings.dataset} | {model.manifest.dataset for model in self.models.values()}
        if ":" in name or dataset not in known:
            raise Problem(404, "unknown_model", f"{name!r} is not published", near=tags)
        raise no_weights(card.name, dataset, tags)

    def ready(self, dataset: str) -> list[ServedModel]:
        """Those of a data set that are loaded."""
        return [model for model in self.models.values() if model.manifest.dataset == dataset and model.chosen.queue]

    @property
    def slots(self) -> Iterator[tuple[str, Slot]]:
        """Every engine that was loaded or asked for, with its model's tag."""
        return ((tag, slot) for tag, model in self.models.items() for slot in model.slots.values())

    async def load_all(self) -> None:
        """Load what never was, one after another; one that fails does not stop the others.

        What has no older version in its place only where it fits, and where all is to be loaded at the start.
        """
        for model in list(self.models.values()):
            if model.proven or model.chosen.retry_at > time.monotonic():
                continue
            fits = self._settings.load == "start" and self.loader.has_room(model)
            if fits or self._replaces(model):
                with suppress(Problem):  # logged, and in the model's status
                    await self.loader.queue(model)

    def _replaces(self, new: ServedModel) -> bool:
        """Whether it is a newer version of a model that is loaded."""
        return any(
            old.chosen.queue
            and old.manifest.dataset == new.manifest.dataset
            and old.manifest.created < new.manifest.created
            for old in self.published(new.manifest.architecture)
        )


def no_weights(architecture: str, dataset: str, others: list[str]) -> Problem:
    """409; for the data set that training has at hand, with the command that makes the weights."""
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
