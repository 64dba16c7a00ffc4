"""Which weights a name means."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from bentoml._internal.configuration.containers import BentoMLContainer
from bentoml._internal.models import ModelStore

from engines import manifest
from engines.runtime import EngineSpec
from engines.store import PublishedModel
from models.zoo import ZOO
from service.catalog import Catalog
from service.errors import Problem
from service.settings import EMBEDDED_DATASET, Settings
from training.data import DataSet
from training.recipe import quick


@pytest.fixture
def store(lenet5: PublishedModel, tmp_path: Path) -> Iterator[None]:
    """Older and newer lenet5 weights for mnist5k, and the newest of all for another data set."""
    for number, (dataset, digest) in enumerate([("mnist5k", "a"), ("mnist5k", "b"), ("kuzushiji", "c")]):
        entry = json.loads((lenet5.folder / manifest.FILE).read_text())
        entry["dataset"] = dataset
        entry["files"][manifest.WEIGHTS]["sha256"] = digest * 64
        entry["created"] = f"2026-01-0{number + 1}T00:00:00Z"
        folder = tmp_path / "lenet5" / f"{dataset}-{digest * 8}"
        shutil.copytree(lenet5.folder, folder)
        (folder / manifest.FILE).write_text(json.dumps(entry))
    BentoMLContainer.model_store.set(ModelStore(tmp_path))
    yield
    BentoMLContainer.model_store.reset()


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize(
    ("name", "settings", "tag"),
    [
        ("lenet5", {}, "lenet5:mnist5k-bbbbbbbb"),
        ("lenet5", {"dataset": "kuzushiji"}, "lenet5:kuzushiji-cccccccc"),
        ("lenet5", {"pins": {"lenet5": "lenet5:mnist5k-aaaaaaaa"}}, "lenet5:mnist5k-aaaaaaaa"),
        ("lenet5@kuzushiji", {}, "lenet5:kuzushiji-cccccccc"),
        ("lenet5:mnist5k-aaaaaaaa", {}, "lenet5:mnist5k-aaaaaaaa"),
    ],
)
def test_a_name_means_these_weights(name: str, settings: dict[str, object], tag: str) -> None:
    assert Catalog(Settings.model_validate(settings)).find(name).manifest.tag == tag


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize(
    ("name", "status"),
    [
        ("lenet6", 404),
        ("lenet5:mnist5k-00000000", 404),
        ("lenet5:mnist5k-aaaaaaaa@mnist5k", 404),
        ("lenet5@nosuch", 404),
        ("lenet5@x; rm -rf", 404),
        ("", 404),
        ("@", 404),
        ("senet154", 409),
        ("senet154@kuzushiji", 409),
    ],
)
def test_a_name_that_means_none_says_why(name: str, status: int) -> None:
    with pytest.raises(Problem) as raised:
        Catalog(Settings()).find(name)
    assert raised.value.status == status
    assert ("command" in raised.value.more) == (name == "senet154")


def test_the_command_of_a_409_can_work_for_every_architecture(digits: DataSet) -> None:
    assert digits.name == EMBEDDED_DATASET
    for name in Catalog(Settings()).architectures:
        assert quick(ZOO[name], digits).epochs


@pytest.mark.usefixtures("store")
def test_other_data_sets_weights_are_never_taken_instead() -> None:
    with pytest.raises(Problem, match="has no published weights for fashion") as raised:
        Catalog(Settings(dataset="fashion")).find("lenet5")
    assert raised.value.more["near"][0] == "lenet5:kuzushiji-cccccccc"


@pytest.mark.anyio
@pytest.mark.usefixtures("lenet5")
async def test_what_was_chosen_for_it_and_fails_is_opened_by_openvino(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def on_a_gpu(records: object, runtime: str, precision: str) -> EngineSpec:  # that is not there
        return EngineSpec("tensorrt_rtx" if runtime == "auto" else "openvino", "fp32")

    monkeypatch.setattr("service.catalog.choose", on_a_gpu)
    catalog = Catalog(Settings(load="first_use"))
    assert (await catalog.engine(catalog.find("lenet5"))).runtime == "openvino"
    assert "is opened by openvino instead: there is no NVIDIA GPU" in caplog.text


@pytest.mark.anyio
@pytest.mark.usefixtures("lenet5")
async def test_what_is_asked_for_and_fails_is_an_error() -> None:
    catalog = Catalog(Settings(load="first_use", runtime="tensorrt_rtx"))
    with pytest.raises(Problem, match="cannot be loaded: there is no NVIDIA GPU"):
        await catalog.engine(catalog.find("lenet5"))
