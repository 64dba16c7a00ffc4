"""Tests of the catalogue: model names, loading, and the memory budget."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from bentoml._internal.configuration.containers import BentoMLContainer
from bentoml._internal.models import ModelStore

from engines.measured import records
from engines.measured.records import Fidelity
from engines.published import manifest
from engines.published.store import PublishedModel
from engines.runtimes.registry import EngineSpec
from models.zoo import ZOO
from service.catalog import Catalog
from service.errors import Problem
from service.loading import Loader, ServedModel
from service.settings import EMBEDDED_DATASET, Settings
from training.data import DataSet
from training.recipes import quick

Rows = list[tuple[str, str | None]]


@contextmanager
def store_of(lenet5: PublishedModel, root: Path, rows: Rows) -> Iterator[None]:
    """Use a store of copies of lenet5, each newer than the last, with the data sets and false digests of `rows`."""
    for number, (dataset, digest) in enumerate(rows):
        fields = json.loads((lenet5.folder / manifest.FILE).read_text())
        fields["dataset"] = dataset
        weights = fields["files"][manifest.WEIGHTS]
        weights["sha256"] = digest * 64 if digest else weights["sha256"]
        fields["created"] = f"2026-01-0{number + 1}T00:00:00Z"
        folder = root / "lenet5" / f"{dataset}-{weights['sha256'][:8]}"
        shutil.copytree(lenet5.folder, folder)
        (folder / manifest.FILE).write_text(json.dumps(fields))
    BentoMLContainer.model_store.set(ModelStore(root))
    yield
    BentoMLContainer.model_store.reset()


@pytest.fixture
def store(lenet5: PublishedModel, tmp_path: Path) -> Iterator[None]:
    """Use a store of older and newer lenet5 weights for mnist5k, and the newest for another data set."""
    with store_of(lenet5, tmp_path, [("mnist5k", "a"), ("mnist5k", "b"), ("kuzushiji", "c")]):
        yield


@pytest.fixture
def loadable(lenet5: PublishedModel, tmp_path: Path) -> Iterator[None]:
    """Use a store of three models that can be loaded."""
    with store_of(lenet5, tmp_path, [("first", None), ("second", None), ("third", None)]):
        yield


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize(
    ("name", "settings", "tag"),
    [
        ("lenet5", {}, "lenet5:mnist5k-bbbbbbbb"),
        ("lenet5", {"dataset": "kuzushiji"}, "lenet5:kuzushiji-cccccccc"),
        ("lenet5", {"pins": {"lenet5": "lenet5:mnist5k-aaaaaaaa"}}, "lenet5:mnist5k-aaaaaaaa"),
        ("lenet5@kuzushiji", {}, "lenet5:kuzushiji-cccccccc"),
        ("lenet5:mnist5k-aaaaaaaa", {}, "lenet5:mnist5k-aaaaaaaa"),
        ("lenet5@", {}, "lenet5:mnist5k-bbbbbbbb"),
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


@pytest.mark.parametrize(
    ("name", "dataset", "command"),
    [
        ("resnet56_cifar", "mnist5k", "import resnet56_cifar && {}/resnet56_cifar-cifar10"),
        ("resnet18", "imagenet", "import resnet18 && {}/resnet18-imagenet"),
        ("resnet18@imagenet", "mnist5k", "import resnet18 && {}/resnet18-imagenet"),
        ("resnet18@mnist5k", "mnist5k", "resnet18 --data mnist5k && {}/resnet18-mnist5k"),
        ("zfnet", "mnist5k", "zfnet --data mnist5k && {}/zfnet-mnist5k"),
    ],
)
def test_weights_that_a_library_has_are_imported(
    name: str, dataset: str, command: str, lenet5: PublishedModel, tmp_path: Path
) -> None:
    with store_of(lenet5, tmp_path, [("imagenet", "a")]), pytest.raises(Problem) as raised:
        Catalog(Settings(dataset=dataset)).find(name)
    expected = f"python -m training {command.format('python -m training publish checkpoints')}"
    assert raised.value.more["command"] == expected
    assert raised.value.detail.endswith(f": {expected}")


def test_the_cards_of_the_server_say_what_can_be_imported() -> None:
    cards = Catalog(Settings()).architectures
    assert {name: card.importable for name, card in cards.items()} == {
        name: card.weights and card.weights.data for name, card in ZOO.items()
    }


@pytest.mark.usefixtures("store")
def test_of_several_other_data_sets_none_is_taken_and_all_are_named() -> None:
    catalog = Catalog(Settings(dataset="fashion"))
    for name in ("lenet5", "lenet5@fashion"):
        with pytest.raises(Problem, match="has no published weights for fashion") as raised:
            catalog.find(name)
        assert (raised.value.status, raised.value.code) == (409, "no_weights")
        assert raised.value.more["near"] == ["lenet5@kuzushiji", "lenet5@mnist5k"]
        assert "there are lenet5@kuzushiji, lenet5@mnist5k" in raised.value.detail
    for name in raised.value.more["near"]:
        assert catalog.find(name)


def test_the_only_other_data_sets_weights_are_taken(lenet5: PublishedModel, tmp_path: Path) -> None:
    with store_of(lenet5, tmp_path, [("imagenet", "a"), ("imagenet", "b")]):
        catalog = Catalog(Settings())
        assert catalog.find("lenet5").manifest.tag == "lenet5:imagenet-bbbbbbbb"
        assert catalog.dataset(None) == "imagenet"  # of `auto` and /pareto
        with pytest.raises(Problem) as raised:
            catalog.find("lenet5@mnist5k")  # whoever names a data set gets this data set
        assert (raised.value.status, raised.value.more["near"]) == (409, ["lenet5@imagenet"])
        hidden = tmp_path / "lenet5" / "mnist5k-aaaaaaaa"
        hidden.mkdir()
        (hidden / manifest.FILE).write_text("{")  # weights of the default data set that cannot be read
        catalog.scan()
        with pytest.raises(Problem, match=r"lenet5:mnist5k-aaaaaaaa: manifest\.json is not valid") as raised:
            catalog.find("lenet5")
        assert raised.value.more["near"] == ["lenet5@imagenet"]


@pytest.mark.parametrize(
    ("name", "first"),
    [
        ("resnet20", "resnet20_cifar"),
        ("rasnet20", "resnet20_cifar"),
        ("ResNet-50", "resnet50"),
        ("resnet_50", "resnet50"),
        ("inceptionv3", "inception_v3"),
        ("lenet", "lenet5"),
        ("vgg", "vgg11"),
        ("154", "senet154"),
        ("densnet121", "densenet121"),
        ("", None),
        ("bogus", None),
        ("resnet50" * 1000, None),
    ],
)
def test_near_names_begin_alike_or_contain_the_name(name: str, first: str | None) -> None:
    with pytest.raises(Problem, match="there is no model") as raised:
        Catalog(Settings()).architecture(name)
    near = raised.value.more["near"]
    assert near[:1] == ([first] if first else [])
    assert len(near) <= 3
    assert len(raised.value.detail) < 300


@pytest.mark.anyio
@pytest.mark.usefixtures("lenet5")
async def test_what_was_chosen_for_it_and_fails_is_opened_by_openvino(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def on_a_gpu(records: object, runtime: str, precision: str) -> EngineSpec:  # a GPU that does not exist
        return EngineSpec("tensorrt_rtx" if runtime == "auto" else "openvino", "fp32")

    monkeypatch.setattr("service.loading.choose", on_a_gpu)
    catalog = Catalog(Settings(load="first_use"))
    assert (await catalog.loader.queue(catalog.find("lenet5"))).engine.runtime == "openvino"
    assert "falls back to openvino: there is no NVIDIA GPU" in caplog.text


@pytest.mark.anyio
@pytest.mark.usefixtures("lenet5")
async def test_what_is_asked_for_and_fails_is_an_error() -> None:
    catalog = Catalog(Settings(load="first_use", runtime="tensorrt_rtx"))
    with pytest.raises(Problem, match="cannot be loaded: there is no NVIDIA GPU"):
        await catalog.loader.queue(catalog.find("lenet5"))


@pytest.mark.anyio
@pytest.mark.usefixtures("loadable")
async def test_what_was_used_least_recently_leaves_for_what_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.loading.resident_mb", lambda: 0.0)
    needs = dict.fromkeys(("first", "second", "third"), 100.0)
    monkeypatch.setattr(Loader, "_need_mb", lambda self, model, precision: needs[model.manifest.dataset])
    catalog = Catalog(Settings(runtime="null", memory_mb=250))
    await catalog.load_all()
    one, two, three = catalog.models.values()

    def loaded() -> list[ServedModel]:
        return [model for model in catalog.models.values() if model.chosen.queue]

    assert loaded() == [one, two]  # the third model does not fit
    first = await catalog.loader.queue(one)
    await catalog.loader.queue(three)
    assert loaded() == [one, three]
    with first.in_use():
        await catalog.loader.queue(two)
        assert loaded() == [one, two]
        needs["third"] = 200
        with pytest.raises(Problem, match="too little of CONVSERVE_MEMORY_MB is not in use") as raised:
            await catalog.loader.queue(three)
        assert (raised.value.status, three.chosen.failures) == (503, 0)
    needs["third"] = 300
    with pytest.raises(Problem, match="needs 300 MB, more than CONVSERVE_MEMORY_MB"):
        await catalog.loader.queue(three)
    assert (loaded(), three.chosen.failures) == ([one, two], 1)  # no engine was unloaded for a model that can never fit


@pytest.mark.anyio
@pytest.mark.usefixtures("loadable")
async def test_a_failed_load_is_tried_again_later_and_later(monkeypatch: pytest.MonkeyPatch) -> None:
    catalog = Catalog(Settings(runtime="null"))
    model = next(iter(catalog.models.values()))
    weights = model.published.folder / manifest.WEIGHTS
    good = weights.read_bytes()
    weights.write_bytes(b"broken")
    clock = 1000.0
    monkeypatch.setattr("service.loading.time.monotonic", lambda: clock)
    for wait in (2, 4, 8):
        for _ in range(2):  # the second request is refused without a try
            with pytest.raises(Problem, match="is not the file that was published") as raised:
                await catalog.loader.queue(model)
            assert raised.value.headers == {"Retry-After": str(wait)}
        assert model.chosen.retry_at == clock + wait
        clock += wait
    weights.write_bytes(good)
    await catalog.load_all()
    assert (model.chosen.status, model.chosen.failures, model.chosen.error) == ("ready", 0, None)


@pytest.mark.anyio
@pytest.mark.usefixtures("loadable")
async def test_what_was_withdrawn_is_gone_and_what_is_published_again_stays_loaded() -> None:
    catalog = Catalog(Settings(runtime="null"))
    await catalog.load_all()
    stays, goes, _ = catalog.models.values()
    shutil.rmtree(goes.published.folder)
    path = stays.published.folder / manifest.FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | {"created": "2026-02-01T00:00:00Z"}))
    catalog.scan()
    assert goes not in catalog.models.values()
    assert catalog.models[stays.manifest.tag] is stays
    assert (stays.manifest.created.month, stays.chosen.status) == (2, "ready")


@pytest.mark.anyio
@pytest.mark.usefixtures("loadable")
async def test_an_engine_that_the_records_no_longer_choose_is_replaced_if_there_is_room(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    choice = EngineSpec("null", "fp32")
    monkeypatch.setattr("service.loading.choose", lambda records, runtime, precision: choice)
    monkeypatch.setattr("service.loading.resident_mb", lambda: 0.0)
    monkeypatch.setattr(Loader, "_need_mb", lambda self, model, precision: 100.0)
    catalog = Catalog(Settings(load="first_use", memory_mb=250))
    one, two, _ = catalog.models.values()
    old = await catalog.loader.queue(one)
    await catalog.loader.renew(one)
    await catalog.loader.renew(two)
    assert (one.chosen.queue, two.chosen.status) == (old, "published")  # nothing has changed; nothing is loaded
    choice = EngineSpec("null", "fp32", streams=2)
    with old.in_use():
        await catalog.loader.renew(one)
    new = one.chosen.queue
    assert new not in {old, None}
    assert one.chosen.memory_mb == 100
    choice = EngineSpec("tensorrt_rtx", "fp16")
    with caplog.at_level("ERROR"):
        await catalog.loader.renew(one)
    assert "keeps its engine: lenet5:first-" in caplog.text or "keeps its engine: there is no NVIDIA GPU" in caplog.text
    assert (one.chosen.queue, one.chosen.status) == (new, "ready")
    await catalog.loader.renew(one)  # what cannot be opened is not tried again
    choice = EngineSpec("null", "fp32")
    await catalog.loader.queue(two)
    await catalog.loader.renew(one)
    assert one.chosen.queue is new
    assert "has no room for the faster beside it" in caplog.text


@pytest.mark.anyio
@pytest.mark.usefixtures("loadable")
async def test_new_records_of_a_model_are_read_and_renew_its_engines_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    renewed: list[str] = []

    async def renew(self: Loader, model: ServedModel) -> None:
        renewed.append(model.manifest.dataset)

    monkeypatch.setattr(Loader, "renew", renew)
    catalog = Catalog(Settings(runtime="null"))
    second = list(catalog.models.values())[1]
    fidelity = Fidelity(images=1, top1=1, top5=1, torch_top1=1, agreement=1, logit_error=0)
    records.keep(second.published, "openvino", "bf16", fidelity=fidelity)
    catalog.scan()
    await catalog.renew_all()
    await catalog.renew_all()
    assert renewed == ["second"]
    assert fidelity in [record.fidelity for record in second.records]
