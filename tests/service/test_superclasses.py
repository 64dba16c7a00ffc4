"""Tests of the superclasses in answers: a model of ImageNet has them on each route, other models do not."""

from __future__ import annotations

from typing import Any

import pytest

from service.context import ServerContext
from tests.service.stubs import PUG, TABBY, client_of
from tests.serving import ROOT

pytestmark = pytest.mark.anyio
DIGIT = (ROOT / "docs" / "digit.png").read_bytes()


def check(answer: dict[str, Any], top_k: int = 5) -> None:
    """Check the classes and superclasses of the answer to one image."""
    first, second = answer["predictions"][:2]
    assert (first["label"], first["wnid"], first["superclass"]) == (f"label {TABBY}", "n02123045", "cat")
    assert (second["index"], second["superclass"]) == (PUG, "dog")
    sums = {row["superclass"]: row["probability"] for row in answer["superclasses"]}
    assert list(sums)[:2] == ["cat", "dog"]
    assert list(sums.values()) == sorted(sums.values(), reverse=True)
    assert len(sums) == min(top_k, 31)
    assert first["probability"] < sums["cat"] <= sum(sums.values()) <= 1 + 1e-9


async def test_the_superclasses_of_all_classes_add_up(imagenet_server: ServerContext, imagenet: str) -> None:
    async with client_of(imagenet_server) as client:
        answer = (await client.post(f"/classify?model={imagenet}&top_k=1000", content=DIGIT)).json()
    check(answer, 1000)
    expected: dict[str, float] = {}
    for row in answer["predictions"]:
        expected[row["superclass"]] = expected.get(row["superclass"], 0) + row["probability"]
    assert {row["superclass"]: row["probability"] for row in answer["superclasses"]} == pytest.approx(expected)
    assert sum(expected.values()) == pytest.approx(1)


async def test_several_images_and_a_comparison_have_them(
    imagenet_server: ServerContext, imagenet: str, three: list[str]
) -> None:
    async with client_of(imagenet_server) as client:
        parts = [("image", DIGIT)] * 2
        several = (await client.post(f"/classify?model={imagenet}", files=parts)).json()
        compared = (await client.post(f"/compare?models={imagenet},{three[1]}", content=DIGIT)).json()
    for image in several["images"]:
        check(image)
    of_imagenet, of_digits = (row["answer"] for row in compared["models"])
    check(of_imagenet)
    assert "superclasses" not in of_digits


async def test_an_explanation_names_the_superclass(imagenet_server: ServerContext, imagenet: str) -> None:
    async with client_of(imagenet_server) as client:
        explained = (await client.post(f"/explain?model={imagenet}&class={PUG}", content=DIGIT)).json()["explained"]
    assert (explained["wnid"], explained["superclass"]) == ("n02110958", "dog")


async def test_the_answer_of_another_model_is_as_it_was(imagenet_server: ServerContext, three: list[str]) -> None:
    async with client_of(imagenet_server) as client:
        answer = await client.post(f"/classify?model={three[1]}&top_k=1", content=DIGIT)
        explained = (await client.post(f"/explain?model={three[1]}", content=DIGIT)).json()
    row = answer.json()["predictions"][0]
    start = f'{{"model":"{three[1]}","runtime":"stub","precision":"fp32","predictions":[{{"index":7,"label":"7",'
    assert answer.text.startswith(f'{start}"probability":{row["probability"]}}}],"batch_size":1,"timing_ms":{{')
    assert explained["explained"].keys() == {"index", "label", "probability"}
