"""Commands `push` and `pull`: published models to a bucket, and from there into the model store."""

from __future__ import annotations

from collections.abc import Sequence

from engines.published.bucket import ModelBucket
from engines.published.manifest import Manifest
from engines.published.store import PublishedModel
from engines.published.urls import BucketError


def names_of(manifest: Manifest) -> set[str]:
    """Return the names that select a model on the command line: tag, architecture, and `architecture@dataset`."""
    return {manifest.tag, manifest.architecture, f"{manifest.architecture}@{manifest.dataset}"}


def bucket_of(url: str | None) -> ModelBucket:
    """Return the bucket at a URL. Raises BucketError if there is none."""
    if not url:
        raise BucketError("no bucket is named: set CONVSERVE_MODELS, or name one with --models")
    return ModelBucket(url)


def push(models: Sequence[PublishedModel], url: str | None) -> int:
    """Upload models, and print what was uploaded. Raises BucketError or ManifestError for what cannot be."""
    bucket = bucket_of(url)
    for model in models:
        sent = bucket.push(model)
        print(f"{model.manifest.tag}: {f'{len(sent)} files pushed' if sent else 'there already'}", flush=True)
    return 0


def pull(names: Sequence[str], url: str | None) -> int:
    """Download the models of these names, or all, and print what was downloaded.

    Raises BucketError for a name that the bucket does not have, and BucketError or ManifestError for what cannot be
    downloaded.
    """
    bucket = bucket_of(url)
    there = bucket.models()
    for name in names:
        if not any(name in names_of(manifest) for manifest in there.values()):
            raise BucketError(f"{name} is not in {bucket.url}; there are {', '.join(there) or 'none'}")
    for tag, manifest in there.items():
        if not names or names_of(manifest) & set(names):
            print(f"{tag}: {'pulled' if bucket.pull(tag) else 'here already'}", flush=True)
    return 0
