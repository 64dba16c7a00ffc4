"""Published models in BentoML's model store: listing all models, and adding one atomically."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import bentoml
from bentoml._internal.configuration.containers import BentoMLContainer
from bentoml._internal.models import ModelStore

from engines.published import manifest
from engines.published.files import locked, write
from engines.published.manifest import Accuracy, Manifest, ManifestError

logger = logging.getLogger("bentoml.convserve")


@dataclass(frozen=True)
class PublishedModel:
    """Model in the store with a valid manifest."""

    folder: Path
    manifest: Manifest


class Unserved(NamedTuple):
    """Model in the store that cannot be served, or a whole folder of models, with the reason.

    `name` is the tag, or the architecture of a folder of models, or empty for the whole store.
    """

    path: Path
    name: str
    reason: str


class Survey(NamedTuple):
    """Manifests in the store with the time in ns of their last change, and what cannot be read.

    A store whose survey is unchanged need not be read again: a change of contents or of rights changes the times.
    """

    manifests: dict[Path, int]
    unreadable: tuple[Unserved, ...]


class Contents(NamedTuple):
    """Contents of the store: published models, sorted by tag, and what cannot be served."""

    models: tuple[PublishedModel, ...]
    unserved: tuple[Unserved, ...]


def root() -> Path:
    """Return the folder of BentoML's model store, `$BENTOML_HOME/models`."""
    return Path(BentoMLContainer.model_store.get()._path)


def folder_of(tag: str) -> Path:
    """Return the folder of the model `tag`, which need not exist."""
    name, version = tag.split(":")
    return root() / name / version


def survey() -> Survey:
    """Look for manifests in the store. Models of other projects have none, and are passed over."""
    manifests: dict[Path, int] = {}
    unreadable: list[Unserved] = []

    def folders(parent: Path) -> list[Path]:
        try:
            return sorted(path for path in parent.iterdir() if path.is_dir())
        except FileNotFoundError:  # removed meanwhile
            return []
        except OSError as error:
            unreadable.append(unserved(parent, error))
            return []

    for folder in (folder for name in folders(root()) for folder in folders(name)):
        try:
            manifests[folder / manifest.FILE] = (folder / manifest.FILE).stat().st_ctime_ns
        except FileNotFoundError:
            pass
        except OSError as error:
            unreadable.append(unserved(folder, error))
    return Survey(manifests, tuple(unreadable))


def unserved(path: Path, error: Exception) -> Unserved:
    """Return the model or folder `path` as one that cannot be served because of an error."""
    name = ":".join(path.relative_to(root()).parts)
    if isinstance(error, OSError):
        remedy = "; `chmod -R a+rX` lets every user read" if isinstance(error, PermissionError) else ""
        return Unserved(path, name, f"cannot be read: {error.strerror}{remedy}")
    return Unserved(path, name, str(error).removeprefix(f"{path}: "))


def contents(found: Survey) -> Contents:
    """Read the manifests of a survey, and log a warning for each model that cannot be served.

    bentoml.models.list() cannot be used, since it raises if a single model in the store is incomplete.
    """
    models, not_served = [], list(found.unreadable)
    for path in found.manifests:
        try:
            model_manifest = manifest.load(path.parent)
            if folder_of(model_manifest.tag) != path.parent:
                raise ManifestError(f"{path.parent}: the manifest belongs to another model, {model_manifest.tag}")
            models.append(PublishedModel(path.parent, model_manifest))
        except ManifestError as error:
            cause = error.__cause__
            not_served.append(unserved(path.parent, cause if isinstance(cause, OSError) else error))
    for model in not_served:
        logger.warning("not served: %s: %s", model.path, model.reason)
    return Contents(tuple(models), tuple(not_served))


def published() -> list[PublishedModel]:
    """Return the published models with a valid manifest, sorted by tag; others are logged."""
    return list(contents(survey()).models)


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
    """Move the contents of the folder `files` into the store and return the new folder; a model of the tag is replaced.

    All is on the store's file system.

    BentoML first registers the model in a temporary store in `stage`; one rename then moves it into the real store.
    """
    target = folder_of(model_manifest.tag)
    labels = {"architecture": model_manifest.architecture, "dataset": model_manifest.dataset}
    with bentoml.models.create(model_manifest.tag, labels=labels, _model_store=ModelStore(stage / "store")):
        pass  # `create` writes model.yaml; the other files, which may be large, are moved below
    registered = stage / "store" / model_manifest.architecture / target.name
    (registered / manifest.FILE).write_text(model_manifest.model_dump_json(indent=1))
    # BentoML's folder, and some files, are readable by their owner only; the server may run as another user.
    staged = stage / "staged"
    staged.mkdir()
    mode = staged.stat().st_mode & 0o666  # as the umask wants it
    for file in (*registered.iterdir(), *files.iterdir()):
        file.rename(staged / file.name).chmod(mode)
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists():
        target.rename(stage / "replaced")
    staged.rename(target)
    # `bentoml models get` reads this pointer to the latest version; this project never does.
    latest = stage / "latest"
    latest.write_text(target.name)
    latest.replace(target.parent / "latest")
    return target


def keep_accuracy(tag: str, precision: str, accuracy: Accuracy) -> None:
    """Add a measured accuracy to the manifest of the model `tag`, or replace the one in the same precision.

    Raises ManifestError if the model is gone, OSError if the store cannot be written.
    """
    keep_accuracies(tag, {precision: accuracy})


def keep_accuracies(tag: str, accuracies: Mapping[str, Accuracy]) -> None:
    """Keep measured accuracies by precision, all or none, as `keep_accuracy` does."""
    with staging():  # one publisher at a time
        folder = folder_of(tag)
        found = manifest.load(folder)
        if not accuracies.items() <= found.accuracy.items():
            measured = found.model_copy(update={"accuracy": {**found.accuracy, **accuracies}})
            write(folder / manifest.FILE, measured.model_dump_json(indent=1))
