"""Which models there are: known, published, loaded."""

from __future__ import annotations

import asyncio
import difflib
import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pydantic import TypeAdapter

from engines import records, store
from engines.choose import choose
from engines.engine import Engine, EngineError
from engines.manifest import Manifest, ManifestError
from engines.records import EngineRecord
from engines.runtime import Runtime, open_engine
from engines.store import PublishedModel
from service.errors import Problem
from service.schema import Architecture
from service.settings import EMBEDDED_DATASET, Settings

ARCHITECTURES = Path(__file__).with_name("architectures.json")
logger = logging.getLogger("bentoml.convserve")


@dataclass(eq=False)
class Model:
    """A published model, what was found of its engines on this machine and, once loaded, the one that serves.

    `asked` are the engines of other precisions that requests asked for, by precision.
    """

    published: PublishedModel
    records: tuple[EngineRecord, ...]
    status: Literal["published", "loading", "ready", "failed"] = "published"
    engine: Engine | None = None
    error: str | None = None
    loading: asyncio.Task[Engine] | None = None
    asked: dict[str, asyncio.Task[Engine]] = field(default_factory=dict)

    @property
    def manifest(self) -> Manifest:
        """What was published."""
        return self.published.manifest


class Catalog:
    """The architectures we know and the models published of them, as found when the service starts."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        cards = TypeAdapter(list[Architecture]).validate_json(ARCHITECTURES.read_bytes())
        self.architectures = {card.name: card for card in cards}
        self.models = {model.manifest.tag: Model(model, records.find_all(model)) for model in store.published()}

    def architecture(self, name: str) -> Architecture:
        """Problem 404, with near names, if there is none."""
        if name not in self.architectures:
            near = difflib.get_close_matches(name, self.architectures)
            hint = f"; did you mean {' or '.join(near)}?" if near else ""
            raise Problem(404, "unknown_model", f"there is no model {name!r}{hint}", near=near)
        return self.architectures[name]

    def published(self, architecture: str) -> list[Model]:
        """The models of one architecture, newest first."""
        found = [model for model in self.models.values() if model.manifest.architecture == architecture]
        return sorted(found, key=lambda model: model.manifest.created, reverse=True)

    def find(self, name: str) -> Model:
        """The model meant by a full tag, `architecture@dataset`, or an architecture, of the default data set.

        Of several the newest. Problem 404 if it is not known, 409 if it is a known architecture without weights.
        """
        name = self._settings.pins.get(name, name)
        if name in self.models:
            return self.models[name]
        architecture, _, dataset = name.partition("@")
        dataset = dataset or self._settings.dataset
        card = self.architecture(architecture.partition(":")[0])
        published = self.published(card.name)
        for model in published:
            if architecture == card.name and dataset == model.manifest.dataset:
                return model
        tags = [model.manifest.tag for model in published]
        known = {self._settings.dataset} | {model.manifest.dataset for model in self.models.values()}
        if ":" in name or dataset not in known:
            raise Problem(404, "unknown_model", f"{name!r} is not published", near=tags)
        raise no_weights(card.name, dataset, tags)

    async def engine(self, model: Model, precision: str | None = None) -> Engine:
        """The model's engine, or that of a precision, loaded now if it is not yet.

        Problem 409 if the model was not published in that precision, 503 if the engine cannot be loaded.
        """
        if model.engine and precision in {None, model.engine.precision}:
            return model.engine
        if precision:
            return await self._asked(model, precision)
        if model.loading is None:
            model.loading = asyncio.create_task(self._load(model))
        return await asyncio.shield(model.loading)

    async def _asked(self, model: Model, precision: str) -> Engine:
        """The engine of a precision; one that could not be loaded is tried anew when it is asked for again."""
        tag, precisions = model.manifest.tag, model.manifest.precisions
        if precision not in precisions:
            raise Problem(
                409,
                "no_precision",
                f"{tag} is published in {', '.join(precisions)}, not in {precision}",
                near=precisions,
            )
        if precision not in model.asked:
            model.asked[precision] = asyncio.create_task(asyncio.to_thread(self._open, model, precision, [1]))
        try:
            return await asyncio.shield(model.asked[precision])
        except Exception as error:  # whatever is wrong with one must not stop the others
            model.asked.pop(precision, None)
            logger.error("cannot load %s in %s: %s", tag, precision, error)
            raise Problem(503, "not_loadable", f"{tag} cannot be loaded in {precision}: {error}") from error

    async def load_all(self) -> None:
        """Load every published model, one after another; one that fails does not stop the others."""
        for model in self.models.values():
            with suppress(Problem):  # logged, and in the model's status
                await self.engine(model)

    async def _load(self, model: Model) -> Engine:
        tag = model.manifest.tag
        model.status = "loading"
        try:
            model.engine = await asyncio.to_thread(
                self._open, model, self._settings.precision, self._settings.warm_batches
            )
        except Exception as error:  # whatever is wrong with one model must not stop the others
            model.status, model.error = "failed", str(error)
            expected = isinstance(error, EngineError | ManifestError)
            logger.error("cannot load %s: %s", tag, error, exc_info=not expected)
            raise Problem(503, "not_loadable", f"{tag} cannot be loaded: {error}") from error
        model.status = "ready"
        logger.info("%s is ready on %s, %s", tag, model.engine.runtime, model.engine.precision)
        return model.engine

    def _open(self, model: Model, precision: str, batches: Sequence[int]) -> Engine:
        """The engine that was chosen; where it was chosen by us and cannot be opened, OpenVINO's."""
        settings = self._settings

        def opened(runtime: Runtime | Literal["auto"]) -> Engine:
            spec = choose(model.records, runtime, precision)
            return open_engine(model.published, spec, batches, settings.max_batch)

        try:
            return opened(settings.runtime)
        except EngineError as error:
            if settings.runtime != "auto" or choose(model.records, "auto", precision).runtime == "openvino":
                raise
            logger.warning("%s is opened by openvino instead: %s", model.manifest.tag, error)
        return opened("openvino")


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
