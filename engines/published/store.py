"""Published models in BentoML's model store: listing all models, and adding one atomically."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import bentoml
from bentoml._internal.configuration.containers import BentoMLContainer
from bentoml._internal.models import ModelStore

from engines.published import manifest
from engines.published.files import locked
from engines.published.manifest import Manifest, ManifestError

logger = logging.getLogger("bentoml.convserve")


@dataclass(frozen=True)
class PublishedModel:
    """Model in the store with a valid manifest."""

    folder: Path
    manifest: Manifest


def root() -> Path:
    """Return the folder of BentoML's model store, `$BENTOML_HOME/models`."""
    return Path(BentoMLContainer.model_store.get()._path)


def folder_of(tag: str) -> Path:
    """Return the folder of the model `tag`, which need not exist."""
    name, version = tag.split(":")
    return root() / name / version


def manifests() -> dict[Path, int]:
    """Return each manifest's path and modification time in ns.

    A store whose paths and times are unchanged need not be read again.
    """
    return {path: path.stat().st_mtime_ns for path in root().glob(f"*/*/{manifest.FILE}")}


def published() -> list[PublishedModel]:
    """Return the published models with a valid manifest, sorted by tag.

    Models of other projects, which have no manifest, are ignored; an invalid manifest is logged. bentoml.models.list()
    cannot be used, since it raises if a single model in the store is incomplete.
    """
    models = []
    for path in sorted(root().glob(f"*/*/{manifest.FILE}")):
        try:
            model_manifest = manifest.load(path.parent)
            if folder_of(model_manifest.tag) != path.parent:
                raise ManifestError(f"{path.parent}: the manifest belongs to another model, {model_manifest.tag}")
            models.append(PublishedModel(path.parent, model_manifest))
        except ManifestError as error:
            logger.warning("not served: %s", error)
    return models


@contextmanager
def staging() -> Iterator[Path]:
    """Yield an empty folder on the store's file system to one publisher at a time, and remove the folder afterwards.

    Files that a killed publisher left behind are removed by the next publisher: the lock ends with its process.
    """
    folder = root().parent / "convserve-staging"
    with locked(folder / "lock"):
        work = folder / "work"
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        try:
            yield work
        finally:
            shutil.rmtree(work)


def add(files: Path, model_manifest: Manifest, stage: Path) -> Path:
    """Move the folder `files`, in `stage`, into the store and return the new folder; a model of the tag is replaced.

    BentoML first registers the model in a temporary store in `stage`; one rename then moves it into the real store.
    """
    target = folder_of(model_manifest.tag)
    labels = {"architecture": model_manifest.architecture, "dataset": model_manifest.dataset}
    with bentoml.models.create(model_manifest.tag, labels=labels, _model_store=ModelStore(stage / "store")):
        pass  # `create` writes model.yaml; the other files, which may be large, are moved below
    staged = stage / "store" / model_manifest.architecture / target.name
    (staged / manifest.FILE).write_text(model_manifest.model_dump_json(indent=1))
    for file in files.iterdir():
        file.rename(staged / file.name)
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists():
        target.rename(stage / "replaced")
    staged.rename(target)
    # `bentoml models get` reads this pointer to the latest version; this project never does.
    latest = stage / "latest"
    latest.write_text(target.name)
    latest.replace(target.parent / "latest")
    return target
