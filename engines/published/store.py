"""Published models in BentoML's model store: finding them, and adding one whole or not at all."""

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

logger = logging.getLogger("convserve.store")


@dataclass(frozen=True)
class PublishedModel:
    """An entry of the store whose manifest is valid."""

    folder: Path
    manifest: Manifest


def root() -> Path:
    """Where BentoML keeps models: `$BENTOML_HOME/models`."""
    return Path(BentoMLContainer.model_store.get()._path)


def folder_of(tag: str) -> Path:
    """Where the entry `tag` is, or would be."""
    name, version = tag.split(":")
    return root() / name / version


def manifests() -> dict[Path, int]:
    """When each entry's manifest was written, in ns: what is the same as before need not be read again."""
    return {path: path.stat().st_mtime_ns for path in root().glob(f"*/*/{manifest.FILE}")}


def published() -> list[PublishedModel]:
    """Our entries with a valid manifest, by tag. Others' are passed over, broken ones of ours logged.

    bentoml.models.list() will not do: one entry that was half written makes it raise.
    """
    found = []
    for path in sorted(root().glob(f"*/*/{manifest.FILE}")):
        try:
            entry = manifest.load(path.parent)
            if folder_of(entry.tag) != path.parent:
                raise ManifestError(f"{path.parent}: its manifest is that of {entry.tag}")
            found.append(PublishedModel(path.parent, entry))
        except ManifestError as error:
            logger.warning("not served: %s", error)
    return found


@contextmanager
def staging() -> Iterator[Path]:
    """An empty folder on the store's file system, one publisher at a time, gone afterwards.

    What a killed publisher left there is removed by the next: the lock goes with the process that held it.
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


def add(files: Path, entry: Manifest, stage: Path) -> Path:
    """Move the folder `files`, in `stage`, into the store; what was broken under its tag is replaced.

    BentoML registers the entry in a store of its own in `stage`; one rename then puts it into the real one.
    """
    target = folder_of(entry.tag)
    labels = {"architecture": entry.architecture, "dataset": entry.dataset}
    with bentoml.models.create(entry.tag, labels=labels, _model_store=ModelStore(stage / "store")):
        pass  # writes model.yaml; our files follow by rename, as they may be large
    staged = stage / "store" / entry.architecture / target.name
    (staged / manifest.FILE).write_text(entry.model_dump_json(indent=1))
    for file in files.iterdir():
        file.rename(staged / file.name)
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists():
        target.rename(stage / "replaced")
    staged.rename(target)
    # BentoML's own pointer, for `bentoml models get`; we never read it
    latest = stage / "latest"
    latest.write_text(target.name)
    latest.replace(target.parent / "latest")
    return target
