"""Catalogue of models: known architectures, and published and loaded models."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from math import inf
from typing import TypeVar

from engines.measured import records
from engines.published import store
from engines.published.store import Survey, Unserved
from models.names import near_names, suggestion
from service.architectures import read_cards
from service.errors import Problem
from service.loading import Loader, ServedModel, Slot
from service.schema import ArchitectureCard
from service.settings import EMBEDDED_DATASET, Settings

FRESH_S = 1.0  # least time between two scans, however many requests name what is not published
MAX_NAME = 100  # characters of an unknown name in an error
UNPUBLISHED = {"unknown_model", "unknown_dataset", "no_weights", "no_precision"}  # codes that a scan may mend
T = TypeVar("T")
logger = logging.getLogger("bentoml.convserve")


class Catalog:
    """Known architectures and the published models in the store, rescanned while the server runs."""

    def __init__(self, settings: Settings) -> None:
        self._settings, self._candidates = settings, settings.candidates
        self.architectures = read_cards()
        self.models: dict[str, ServedModel] = {}
        self._unserved: tuple[Unserved, ...] = ()
        self._survey: Survey | None = None
        self._record_times: dict[str, int] = {}
        self._scanned_at = -inf
        self._scanning = asyncio.Lock()
        self._stale: set[str] = set()  # tags of models whose records have changed since their engines were chosen
        self.loader = Loader(settings, lambda: (slot for _, slot in self.slots))
        self.scan()
        self._stale.clear()

    def scan(self) -> None:
        """Read the store and the records of this machine, as far as they have changed.

        New models are added; models that are gone are dropped, and requests in progress keep their model.
        """
        survey, times = store.survey(), records.times()
        changed = {name for name, _ in times.items() ^ self._record_times.items()}
        models = self.models
        if survey != self._survey:
            contents = store.contents(survey)
            models = {}
            for published in contents.models:
                tag = published.manifest.tag
                model = models[tag] = self.models.get(tag) or ServedModel(published, records.find_all(published))
                if model.published != published:  # the same weights have been published again
                    model.published, model.records = published, records.find_all(published)
                    self._stale.add(tag)
            known = {"", *self.architectures}  # what other projects have in the store is no concern of this server
            self._unserved = tuple(item for item in contents.unserved if item.name.partition(":")[0] in known)
        elif not changed:
            return
        for tag, model in models.items():
            if any(name.startswith(records.prefix_of(model.published)) for name in changed):
                model.records = records.find_all(model.published)
                self._stale.add(tag)
        self.models, self._survey, self._record_times = models, survey, times

    async def rescan(self) -> bool:
        """Scan in a thread unless a scan began within the last second; return True if the store was scanned."""
        before = self._scanned_at
        async with self._scanning:
            if self._scanned_at == before and time.monotonic() >= before + FRESH_S:
                began = time.monotonic()
                await asyncio.to_thread(self.scan)
                self._scanned_at = began
            return self._scanned_at != before

    async def fresh(self, look: Callable[[], T]) -> T:
        """Return the result of `look`; if something is not published, rescan first, at most once a second."""
        try:
            return look()
        except Problem as problem:
            if problem.code not in UNPUBLISHED or not await self.rescan():
                raise
        return look()

    async def follow(self) -> None:
        """Rescan every `scan_s` seconds, load new models, retry failed loads, and renew engines. Never returns."""
        while True:
            await asyncio.sleep(self._settings.scan_s)
            try:
                await self.rescan()
                await self.load_all()
                await self.renew_all()
                self.loader.changed()
            except Exception:  # one bad store entry must not stop the others
                logger.exception("cannot rescan the model store")

    def unserved(self, architecture: str | None = None) -> list[str]:
        """Return a line for each model in the store that cannot be served, of one architecture or of all."""
        return [
            f"{item.name or 'the model store'}: {item.reason}"
            for item in self._unserved
            if architecture is None or item.name.partition(":")[0] in {"", architecture}
        ]

    def architecture(self, name: str) -> ArchitectureCard:
        """Return the card of an architecture. Raises Problem 404 with similar names if the name is unknown."""
        if name not in self.architectures:
            near = near_names(name, self.architectures)
            detail = "; ".join(filter(None, [f"there is no model {name[:MAX_NAME]!r}", suggestion(near)]))
            raise Problem(404, "unknown_model", detail, near=near)
        return self.architectures[name]

    def published(self, architecture: str) -> list[ServedModel]:
        """Return the published models of one architecture, newest first."""
        models = [model for model in self.models.values() if model.manifest.architecture == architecture]
        return sorted(models, key=lambda model: model.manifest.created, reverse=True)

    @property
    def datasets(self) -> set[str]:
        """Data sets of the published models."""
        return {model.manifest.dataset for model in self.models.values()}

    def dataset(self, name: str | None) -> str:
        """Return the data set `name`; without a name the default one, or the only one if no model is of the default.

        Raises Problem 404 `unknown_dataset` if no model of the data set is published.
        """
        default = self._settings.dataset
        if not name:
            return only_other(self.datasets, default) or default
        if name not in self.datasets | {default}:
            known = sorted(self.datasets | {default})
            detail = f"no published model is of the data set {name[:MAX_NAME]!r}; there are {', '.join(known)}"
            raise Problem(404, "unknown_dataset", detail, near=known)
        return name

    def matching(self, name: str) -> tuple[ArchitectureCard, list[ServedModel]]:
        """Return the architecture in a name, and its published models to which the name applies, newest first.

        The name is an architecture, `architecture@dataset` or a full tag. Raises Problem 404 if there is no such
        architecture, or no published model of the data set or the tag.
        """
        head, _, dataset = name.partition("@")
        architecture, colon, _ = head.partition(":")
        card = self.architecture(architecture)
        models = self.published(card.name)
        if not colon and (not dataset or dataset in self.datasets | {self._settings.dataset}):
            return card, [model for model in models if dataset in {"", model.manifest.dataset}]
        if name in self.models:
            return card, [self.models[name]]
        near = [model.manifest.tag for model in models] if colon else names_of(models)
        hint = f"; there are {', '.join(near)}" if near else ""
        raise Problem(404, "unknown_model", f"{name[:MAX_NAME]!r} is not published{hint}", near=near)

    def find(self, name: str) -> ServedModel:
        """Return the model for a full tag, `architecture@dataset`, or an architecture.

        An architecture means its weights for the default data set, or for the only data set that has weights of it.
        Several models can match: the newest that has been loaded once is returned, else the newest whose load has not
        failed, else the newest; one of the settings' `candidates` only if there is no other. Raises Problem 404 for an
        unknown name, 409 for a known architecture without weights.
        """
        name = self._settings.pins.get(name, name)
        if name in self.models:
            return self.models[name]
        card, matching = self.matching(name)
        dataset = name.partition("@")[2]
        if not dataset:
            default = dataset = self._settings.dataset
            if not self._hides(card.name, default):
                dataset = only_other({model.manifest.dataset for model in matching}, default) or default
            matching = [model for model in matching if model.manifest.dataset == dataset]
        if not matching:
            others = names_of(self.published(card.name))
            raise no_weights(card, dataset, others, self.unserved(card.name), named="@" in name)
        matching = [model for model in matching if model.manifest.tag not in self._candidates] or matching
        proven = [model for model in matching if model.proven]
        not_failed = [model for model in matching if model.chosen.status != "failed"]
        return (proven or not_failed or matching)[0]

    def _hides(self, architecture: str, dataset: str) -> bool:
        """Return True if there may be weights in the store that cannot be read; others are not put in their place."""
        names = [item.name for item in self._unserved]
        return any(name in {"", architecture} or name.startswith(f"{architecture}:{dataset}-") for name in names)

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

    async def renew_all(self) -> None:
        """Renew the engines of the models whose records on this machine have changed."""
        stale, self._stale = self._stale, set()
        for tag in sorted(stale & self.models.keys()):
            await self.loader.renew(self.models[tag])

    async def reread(self, tag: str) -> None:
        """Read the records of a model again, and renew the model's engines."""
        if model := self.models.get(tag):
            model.records = await asyncio.to_thread(records.find_all, model.published)
            await self.loader.renew(model)

    def _replaces(self, new: ServedModel) -> bool:
        """Return True if an older version of the model is loaded."""
        return any(
            old.chosen.queue
            and old.manifest.dataset == new.manifest.dataset
            and old.manifest.created < new.manifest.created
            for old in self.published(new.manifest.architecture)
        )


def only_other(datasets: set[str], default: str) -> str | None:
    """Return the only data set if there is one and the default is not among the data sets, else None."""
    return next(iter(datasets)) if len(datasets) == 1 and default not in datasets else None


def names_of(models: list[ServedModel]) -> list[str]:
    """Return the names by which requests choose among the data sets of some models, in the models' order."""
    return list(dict.fromkeys(f"{model.manifest.architecture}@{model.manifest.dataset}" for model in models))


def no_weights(card: ArchitectureCard, dataset: str, others: list[str], unserved: list[str], *, named: bool) -> Problem:
    """Return Problem 409 `no_weights`, with the command that imports weights or trains them, if there is one.

    If the request has not `named` the data set, weights for another one will do where there are none.
    """
    detail = "; ".join([f"{card.name} has no published weights for {dataset}", *unserved])
    if others:
        detail += f"; there are {', '.join(others)}"
    made, source = card.importable, f"import {card.name}"
    if not made or (made != dataset and (named or others or unserved)):
        made, source = dataset, f"{card.name} --data {dataset}"
        if dataset != EMBEDDED_DATASET:
            return Problem(409, "no_weights", detail, near=others)
    command = f"python -m training {source} && python -m training publish checkpoints/{card.name}-{made}"
    verb = "make them" if made == dataset else f"take those for {made}"
    return Problem(409, "no_weights", f"{detail}; {verb}: {command}", near=others, command=command)
