"""Fixtures of the service's tests: several published models, and a server in the process of the tests."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from bentoml._internal.configuration.containers import BentoMLContainer
from bentoml._internal.models import ModelStore

from engines.published import manifest, store
from engines.published.store import PublishedModel
from service.context import ServerContext, make_context
from service.settings import Settings
from tests.service.stubs import RandomImageNetEngine, StubEngine, put


@pytest.fixture
def three(lenet5: PublishedModel, tmp_path: Path) -> Iterator[list[str]]:
    """Publish three models of one data set, newer ones more accurate, and one of another; return their tags."""
    tags = []
    rows = [("a", "mnist5k", 0.8), ("b", "mnist5k", 0.9), ("c", "mnist5k", 0.95), ("d", "kuzushiji", 0.99)]
    for number, (digest, dataset, top1) in enumerate(rows):
        original = lenet5.manifest
        files = original.files | {
            manifest.WEIGHTS: original.files[manifest.WEIGHTS].model_copy(update={"sha256": digest * 64})
        }
        accuracy = {"fp32": manifest.Accuracy(top1=top1, images=1000)}
        changed = original.model_copy(
            update={
                "files": files,
                "dataset": dataset,
                "accuracy": accuracy,
                "created": original.created.replace(year=2030 + number),
            }
        )
        folder = tmp_path / "lenet5" / f"{dataset}-{digest * 8}"
        shutil.copytree(lenet5.folder, folder)
        (folder / manifest.FILE).write_text(changed.model_dump_json())
        tags.append(changed.tag)
    BentoMLContainer.model_store.set(ModelStore(tmp_path))
    yield tags
    BentoMLContainer.model_store.reset()


@pytest.fixture
def stub_server(three: list[str]) -> ServerContext:
    """Return a server whose three models answer 0, 1 and 1, in 1, 10 and 100 predicted ms; the fourth answers 2."""
    server = make_context(Settings())
    for tag, answer, seconds in zip(three, (0, 1, 1, 2), (0.001, 0.01, 0.1, 0.1), strict=True):
        put(server, tag, StubEngine(answer), seconds)
    return server


@pytest.fixture
def imagenet(three: list[str]) -> str:
    """Make the first of the three models one of ImageNet with 1,000 classes, and return its tag."""
    folder = store.folder_of(three[0])
    labels = tuple(f"label {index}" for index in range(1000))
    changed = manifest.load(folder).model_copy(update={"dataset": "imagenet", "labels": labels, "accuracy": {}})
    (folder / manifest.FILE).write_text(changed.model_dump_json())
    folder.rename(store.folder_of(changed.tag))
    return changed.tag


@pytest.fixture
def imagenet_server(imagenet: str, three: list[str]) -> ServerContext:
    """Return a server of a model of ImageNet, and of one of digits that answers 7."""
    server = make_context(Settings())
    put(server, imagenet, RandomImageNetEngine())
    put(server, three[1], StubEngine(7))
    return server
