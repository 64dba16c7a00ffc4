"""Tests of the accuracy that models are compared by: measured or published, never both in one comparison."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from engines.measured.records import Fidelity, keep
from engines.published import manifest, store
from engines.published.store import PublishedModel
from service.accuracy import agreement
from service.context import ServerContext, make_context
from service.settings import Settings
from tests.service.stubs import StubEngine, client_of, put
from tests.serving import ROOT
from training.report import report
from training.significance import wilson

pytestmark = pytest.mark.anyio
DIGIT = (ROOT / "docs" / "digit.png").read_bytes()
SAMPLES = Fidelity(images=16, top1=None, top5=None, torch_top1=None, agreement=1.0, logit_error=1e-3)


def published(top1: float) -> dict[str, Any]:
    """Return the fields of a manifest of weights that torchvision publishes, without a measured accuracy."""
    origin = {
        "library": "torchvision",
        "name": "V1",
        "source": "https://example.org/v1.pth",
        "top1": top1,
        "top5": 90.0,
    }
    return {"provenance": {"imported": origin}, "accuracy": {}}


def change(tag: str, **fields: Any) -> None:
    """Change fields of a model's manifest in the store, as an importer of another version would write them."""
    path = store.folder_of(tag) / manifest.FILE
    found = manifest.load(path.parent)
    path.write_text(manifest.Manifest.model_validate(found.model_dump(mode="json") | fields).model_dump_json())


def bf16() -> StubEngine:
    """Return an engine that counts as OpenVINO's in bf16."""
    engine = StubEngine(1)
    engine.runtime, engine.precision = "openvino", "bf16"
    return engine


@pytest.fixture
def imported(three: list[str]) -> list[str]:
    """Give two of the three models a published accuracy in place of the measured one, and the third none at all."""
    change(three[0], **published(70.0))
    change(three[1], **published(76.5))
    change(three[2], accuracy={})
    return three


def served(tags: list[str]) -> ServerContext:
    """Return a server that has loaded the models, each ten times as slow as the one before."""
    server = make_context(Settings())
    for number, tag in enumerate(tags):
        put(server, tag, StubEngine(number), 0.001 * 10**number)
    return server


async def test_published_accuracies_are_compared_and_say_whose_they_are(imported: list[str]) -> None:
    async with client_of(served(imported[:3])) as client:
        answer = await client.post("/classify?model=auto&max_latency_ms=500", content=DIGIT)
        choice = answer.json()["choice"]
        assert answer.json()["model"] == imported[1]
        assert choice["accuracy"] == {"kind": "published", "protocol": manifest.PROTOCOLS["imagenet"][0]}
        assert choice["reason"].endswith("; top-1 published: ImageNet validation, one centre crop")
        assert [(row["top1"], row["images"]) for row in choice["front"]] == [(0.7, 50_000), (0.765, 50_000)]
        assert choice["front"][0]["source"] == "torchvision V1, https://example.org/v1.pth"
        reason = choice["not_compared"][imported[2]]
        protocol, _ = manifest.PROTOCOLS["imagenet"]
        assert reason.startswith(f"no top-1 published: {protocol}; python -m training evaluate {imported[2]}")
        pareto = (await client.get("/pareto")).json()
        assert pareto["accuracy"] == choice["accuracy"]
        assert pareto["not_compared"] == choice["not_compared"]
        assert {row["model"]: row["front"] for row in pareto["models"]} == {
            imported[0]: ["latency"],
            imported[1]: ["macs", "params", "latency"],
        }
        (described,) = (await client.get(f"/models/{imported[0]}")).json()["models"]
        assert (described["accuracy"], described["published_accuracy"]["top1"]) == ({}, 0.7)


async def test_what_was_measured_takes_the_place_of_what_was_published(imported: list[str]) -> None:
    measured = manifest.Accuracy(top1=0.69, images=1000)
    store.keep_accuracy(imported[0], "fp32", measured)
    store.keep_accuracy(imported[2], "fp32", measured)
    server = served(imported[:3])
    async with client_of(server) as client:

        async def rated() -> dict[str, float]:
            return {row["model"]: row["top1"] for row in (await client.get("/pareto")).json()["models"]}

        # The second is published only; as many are measured, so that these are compared, without the second.
        assert await rated() == {imported[0]: 0.69, imported[2]: 0.69}
        change(imported[2], **published(60.0))
        server.catalog.scan()
        assert await rated() == {imported[0]: 0.7, imported[1]: 0.765, imported[2]: 0.6}
        for tag in imported[1:3]:
            store.keep_accuracy(tag, "fp32", measured)
        server.catalog.scan()
        assert await rated() == dict.fromkeys(imported[:3], 0.69)


async def test_another_precision_says_what_it_may_lose_of_the_published(imported: list[str]) -> None:
    server = served(imported[:1])
    put(server, imported[0], bf16())
    async with client_of(server) as client:
        nothing = await client.post("/classify?model=auto&min_accuracy=0.5", content=DIGIT)
        assert (nothing.status_code, nothing.json()["code"]) == (503, "no_choice")
        assert "its bf16 is not verified here, so its published top-1 may not hold" in nothing.json()["detail"]
        assert nothing.json()["detail"].endswith(f": python -m engines verify {imported[0]}")
        model = server.catalog.models[imported[0]]
        model.records = (keep(model.published, "openvino", "bf16", fidelity=SAMPLES),)
        answer = await client.post("/classify?model=auto&min_accuracy=0.5", content=DIGIT)
        (row,) = answer.json()["choice"]["front"]
        assert (row["precision"], row["top1_precision"], row["top1"]) == ("bf16", "fp32", 0.7)
        assert row["agreement"] == {"share": 1.0, "images": 16, "lost_at_most": pytest.approx(0.1936, abs=1e-4)}
        said = "in fp32; bf16 agrees on 100.0% of 16 pictures: at most 19.4% lost, at 95 % confidence"
        assert answer.json()["choice"]["reason"].endswith(said)
        faithless = SAMPLES.model_copy(update={"agreement": 0.5})
        model.records = (keep(model.published, "openvino", "bf16", fidelity=faithless),)
        pareto = (await client.get("/pareto")).json()
        assert pareto["not_compared"][imported[0]] == "bf16: it agrees with torch on 50.0% of 16 sample pictures"


@pytest.mark.parametrize(("images", "agreeing"), [(16, 16), (256, 254), (50_000, 49_900)])
async def test_the_bound_is_the_upper_end_of_wilsons_interval(images: int, agreeing: int) -> None:
    found = agreement(SAMPLES.model_copy(update={"images": images, "agreement": agreeing / images}))
    assert found.lost_at_most == pytest.approx(wilson(images - agreeing, images)[1], abs=1e-4)


async def test_without_any_accuracy_the_error_names_the_command(imported: list[str]) -> None:
    server = make_context(Settings())
    put(server, imported[2], StubEngine())
    async with client_of(server) as client:
        answer = (await client.post("/classify?model=auto&min_accuracy=0.5", content=DIGIT)).json()
    assert answer["detail"] == (
        f"no loaded model of mnist5k has a known accuracy; {imported[2]}: no top-1 is known, neither measured nor "
        f"published; python -m training evaluate {imported[2]} measures one"
    )
    async with client_of(make_context(Settings())) as client:
        answer = (await client.post("/classify?model=auto&min_accuracy=0.5", content=DIGIT)).json()
    assert "a request that names one loads it" in answer["detail"]


async def test_imagenets_classes_are_the_same_however_they_are_spelt(imported: list[str]) -> None:
    for number, tag in enumerate(imported[:2]):
        change(tag, dataset="imagenet", labels=[f"class {number} {label}" for label in range(10)])
        folder = store.folder_of(tag)
        folder.rename(folder.with_name(folder.name.replace("mnist5k", "imagenet")))
    server = make_context(Settings())
    tags = [tag.replace("mnist5k", "imagenet") for tag in imported[:2]]
    async with client_of(server) as client:
        pareto = (await client.get("/pareto?dataset=imagenet")).json()
        for second in (3, 4):
            for tag, answers in zip(tags, (3, second), strict=True):
                put(server, tag, StubEngine(answers))
            compared = await client.post("/compare", params={"models": ",".join(tags)}, content=DIGIT)
            assert compared.json()["agree"] == (second == 3)  # "class 0 3" and "class 1 3" are one class
    assert len(pareto["models"]) == 2
    assert pareto["not_compared"] == {}


@pytest.mark.slow
def test_evaluate_keeps_the_accuracy_that_is_compared(three: list[str], lenet5: PublishedModel, tmp_path: Path) -> None:
    tag = lenet5.manifest.tag
    assert tag not in three
    shutil.copytree(lenet5.folder, store.folder_of(tag))  # a store of this test
    change(tag, accuracy={})
    said = report(tag, None, "fp32", tmp_path / "confusion.png")
    assert said.endswith(f"kept in the manifest of {tag}: model=auto and /pareto compare by it")
    assert manifest.load(store.folder_of(tag)).accuracy == {"fp32": lenet5.manifest.accuracy["fp32"]}


def test_an_older_version_reads_a_manifest_without_a_published_accuracy(three: list[str]) -> None:
    assert "published" not in (store.folder_of(three[0]) / manifest.FILE).read_text()
