"""Published models in a bucket, on a web server or in a folder elsewhere: pushed, and pulled into the model store."""

from __future__ import annotations

import logging
import re
import shutil
import time
from importlib.util import find_spec
from pathlib import Path
from threading import Event

from fsspec.callbacks import Callback

from engines.published import files, manifest, store
from engines.published.manifest import Manifest, ManifestError
from engines.published.store import PublishedModel
from engines.published.urls import BucketError, files_below, open_url, reported

# Package that reads a scheme, and the extra of this project that installs the package.
SCHEMES = {
    "s3": ("s3fs", "s3"),
    "gs": ("gcsfs", "gcs"),
    "https": ("aiohttp", None),
    "http": ("aiohttp", None),
    "file": ("fsspec", None),
}
RETRY_S = 60.0  # after which a model that could not be downloaded is tried again, unless it has changed before
FILE_NAME = re.compile("[A-Za-z0-9_][A-Za-z0-9_.-]*")
OF_THE_STORE = {manifest.FILE, "model.yaml"}  # files that the model store itself writes
FORM = "the form is s3://BUCKET/FOLDER, gs://BUCKET/FOLDER or https://HOST/FOLDER"
logger = logging.getLogger("bentoml.convserve")


def check_url(url: str) -> str:
    """Return the URL of a store of models. Raises BucketError for another form, or if its package is not installed."""
    scheme, separator, rest = url.partition("://")
    if not separator or scheme not in SCHEMES or not rest.strip("/"):
        raise BucketError(FORM)
    package, extra = SCHEMES[scheme]
    if not find_spec(package):
        raise BucketError(f"{scheme}:// needs {package}, which is not installed: pip install '.[{extra}]'")
    return url


class StoppedError(BucketError):
    """Raised in a download that is to end before it is whole."""


class Progress(Callback):  # type: ignore[misc]
    """Progress of downloads, which fsspec reports part by part, and which ends them once `stopped` is set."""

    def __init__(self, stopped: Event) -> None:
        super().__init__()
        self._stopped = stopped

    def go_on(self) -> None:
        """Raise StoppedError if downloads are to end."""
        if self._stopped.is_set():
            raise StoppedError("the download was stopped")

    def relative_update(self, inc: int = 1) -> None:
        """Count bytes that have come. Raises StoppedError if downloads are to end."""
        self.go_on()
        super().relative_update(inc)


class ModelBucket:
    """Store of published models at a URL: `<architecture>/<version>/` with the files of each, its manifest last.

    A model without a manifest is not seen, so that a push that was interrupted is none. `errors` has an error for each
    model that could not be downloaded, by the name of its manifest.
    """

    def __init__(self, url: str, stopped: Event | None = None) -> None:
        """Open the store at a URL. Once `stopped` is set, a download ends at its next part, and none begins."""
        self.url = check_url(url)
        self._progress = Progress(stopped or Event())
        self._files, root = open_url(url)
        self._root = root.rstrip("/")
        self._seen: dict[str, str] = {}  # description of each manifest that was taken up
        self._failed: dict[str, tuple[str, float]] = {}  # description and time of each that could not be
        self.errors: dict[str, str] = {}

    def push(self, model: PublishedModel) -> list[str]:
        """Upload a published model, its manifest last, and return the names of the files that were not there.

        A file is there if the manifest in the bucket has its checksum. Raises ManifestError if a file here differs from
        the published one, BucketError if the bucket cannot be written.
        """
        if self.url.startswith("http"):
            raise BucketError(f"{self.url} can only be read; push to the bucket or the folder behind it")
        model.manifest.check_files(model.folder)
        folder = f"{self._root}/{model.manifest.tag.replace(':', '/')}"
        known = self._known(f"{folder}/{manifest.FILE}")
        missing = [name for name, file in model.manifest.files.items() if known.get(name) != file]
        with reported(self.url):
            self._files.makedirs(folder, exist_ok=True)
            for name in missing:
                self._files.put_file(str(model.folder / name), f"{folder}/{name}")
            self._files.pipe_file(f"{folder}/{manifest.FILE}", model.manifest.model_dump_json(indent=1).encode())
        return missing

    def _known(self, name: str) -> dict[str, manifest.File]:
        """Return the files of a manifest in the bucket, none if there is no manifest or if it is not valid."""
        with reported(self.url):
            if not self._files.exists(name):
                return {}
        try:
            return self._read(name).files
        except ManifestError:
            return {}

    def models(self) -> dict[str, Manifest]:
        """Return the manifests in the bucket by tag. Raises BucketError, or ManifestError if one is not valid."""
        with reported(self.url):
            names = list(self._manifests())
        found = [self._read(name) for name in names]
        return {one.tag: one for one in found}

    def pull(self, tag: str) -> bool:
        """Download a model, or the accuracies that are new, into the model store; return False if the store has all.

        Raises BucketError if the bucket cannot be read, ManifestError if the model there is not whole, OSError if the
        store cannot be written.
        """
        with files.locked(downloads() / "lock"):
            return self._pull(f"{self._root}/{tag.replace(':', '/')}/{manifest.FILE}")

    def pull_new(self, wait: bool) -> list[str]:
        """Download the models that the store lacks, or has in an older form, and return their tags.

        Accuracies that were measured later are taken as well. While another process does so, `wait` for its end, or
        return at once. A model that cannot be downloaded is logged once, and tried again by a call a minute later, or
        as soon as its manifest is another. Raises BucketError if the bucket cannot be read.
        """
        if wait:
            with files.locked(downloads() / "lock"):
                return self._pull_new()
        with files.lock_if_free(downloads() / "lock") as free:
            return self._pull_new() if free else []

    def _pull_new(self) -> list[str]:
        with reported(self.url):
            found = self._manifests()
        self.errors = {name: error for name, error in self.errors.items() if name in found}
        pulled = []
        for name, description in found.items():
            failed, failed_at = self._failed.get(name, (None, 0.0))
            if failed == description and time.monotonic() < failed_at + RETRY_S:
                continue
            if description and self._seen.get(name) == description:
                continue
            try:
                new = self._pull(name)
            except StoppedError:
                break
            except Exception as error:  # one model keeps no other back
                expected = isinstance(error, BucketError | ManifestError | OSError)
                text = str(error) if expected else f"{name}: {type(error).__name__}: {error}"
                if self.errors.get(name) != text:
                    logger.warning("not pulled: %s", text, exc_info=not expected)
                self.errors[name] = text
                self._failed[name] = description, time.monotonic()
            else:
                self._seen[name] = description
                self.errors.pop(name, None)
                self._failed.pop(name, None)
                pulled += [":".join(name.split("/")[-3:-1])] if new else []
        return pulled

    def _manifests(self) -> dict[str, str]:
        """Return the manifests in the bucket, each with what the listing says of it: its ETag, size or time.

        A web server's listing says nothing of them, so that each is read again.
        """
        depth = self._root.count("/") + 3
        return {
            name: repr(sorted((key, str(value)) for key, value in details.items())) if details.get("size") else ""
            for name, details in files_below(self._files, self._root).items()
            if name.endswith(f"/{manifest.FILE}") and name.count("/") == depth
        }

    def _read(self, name: str) -> Manifest:
        """Read a manifest in the bucket. Raises ManifestError if it is not valid, or belongs to another model."""
        with reported(self.url):
            data = self._files.cat_file(name)
        found = manifest.parse(data, name)
        if found.tag.replace(":", "/") != "/".join(name.split("/")[-3:-1]):
            raise ManifestError(f"{self.url}: {name} belongs to another model, {found.tag}")
        for file in found.files:  # a name becomes a path
            if not FILE_NAME.fullmatch(file) or file in OF_THE_STORE:
                raise ManifestError(f"{self.url}: {name} is not valid: {file!r} is no name of a file")
        return found

    def _pull(self, name: str) -> bool:
        found = self._read(name)
        here = in_store(found.tag)
        if here and here.created >= found.created:
            same = (here.created, here.files) == (found.created, found.files)
            if not same or found.accuracy.items() <= here.accuracy.items():
                return False
            store.keep_accuracies(found.tag, found.accuracy)  # measured after the model was published
            return True
        work = downloads() / found.tag.replace(":", "-")
        work.mkdir(exist_ok=True)
        for path in work.iterdir():
            if path.name not in found.files:
                path.unlink()
        for file, expected in found.files.items():
            path = work / file
            if path.exists() and manifest.sha256(path) == expected.sha256:
                continue  # of a pull that was interrupted
            try:
                with reported(self.url):
                    self._progress.go_on()
                    source = f"{name.removesuffix(manifest.FILE)}{file}"
                    self._files.get_file(source, str(path), callback=self._progress)
                if manifest.sha256(path) != expected.sha256:
                    remedy = "remove the model there, and push it again"
                    raise ManifestError(f"{self.url}: {file} of {found.tag} is not the file that was pushed; {remedy}")
            except (BucketError, ManifestError):
                path.unlink(missing_ok=True)  # half a file is of no use to the next try, and may fill the disk
                raise
        with store.staging() as stage:
            store.add(work, found, stage)
        shutil.rmtree(work, ignore_errors=True)
        return True


def downloads() -> Path:
    """Return the folder beside the model store in which files wait until their model is whole."""
    folder = store.root().parent / "convserve-downloads"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def in_store(tag: str) -> Manifest | None:
    """Return the manifest of a model in the model store, or None if the store has none that is valid."""
    try:
        return manifest.load(store.folder_of(tag))
    except ManifestError:
        return None
