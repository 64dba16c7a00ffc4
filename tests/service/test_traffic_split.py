"""Tests of canaries, which answer a share of a name's requests, and of shadows, whose answers are compared."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace

import httpx
import pytest

from service.context import ServerContext, make_context
from service.settings import Settings
from tests.service.stubs import StubEngine, client_of, put
from tests.serving import ROOT

pytestmark = pytest.mark.anyio
DIGIT = (ROOT / "docs" / "digit.png").read_bytes()
USUAL = 2  # place of the model that "lenet5" means: the newest of the default data set


def split(three: list[str], **routes: object) -> ServerContext:
    """Return a server with engines that answer 0, 1 and 1, and these splits of the name lenet5."""
    server = make_context(Settings.model_validate({"routes": {"lenet5": routes}}))
    for tag, answer in zip(three, (0, 1, 1), strict=False):
        put(server, tag, StubEngine(answer))
    return server


async def answering(client: httpx.AsyncClient, requests: int) -> Counter[str]:
    """Return how many requests each model answered."""
    answers = [await client.post("/classify?model=lenet5", content=DIGIT) for _ in range(requests)]
    assert {answer.status_code for answer in answers} == {200}
    return Counter(answer.json()["model"] for answer in answers)


async def shadowed(client: httpx.AsyncClient) -> dict[str, float]:
    """Return the images of shadows by outcome, once none is under way."""
    await asyncio.sleep(0.2)
    lines = (await client.get("/metrics")).text.splitlines()
    found = [line for line in lines if line.startswith("convserve_shadow_images_total{")]
    return {line.partition('outcome="')[2].partition('"')[0]: float(line.rpartition(" ")[2]) for line in found}


async def test_a_canary_answers_its_share(three: list[str]) -> None:
    async with client_of(split(three, to=three[0], share=0.3)) as client:
        answered = await answering(client, 200)
        assert answered.keys() == {three[0], three[USUAL]}
        assert 30 < answered[three[0]] < 95
        by_tag = await client.post(f"/classify?model={three[1]}", content=DIGIT)
        assert by_tag.json()["model"] == three[1]


async def test_a_newer_version_that_is_tried_is_not_what_the_name_means(three: list[str]) -> None:
    async with client_of(split(three, to=three[USUAL], share=0.3)) as client:
        answered = await answering(client, 200)
        assert answered.keys() == {three[1], three[USUAL]}
        assert 30 < answered[three[USUAL]] < 95
    async with client_of(split(three, shadow=three[USUAL], share=1)) as client:
        assert await answering(client, 10) == {three[1]: 10}
        assert await shadowed(client) == {"agrees": 10.0}
    settings = Settings.model_validate({"routes": {"resnet18": {"to": three[USUAL], "share": 0.1}}})
    assert make_context(settings).catalog.find("lenet5").manifest.tag == three[USUAL]  # is tried under another's name


async def test_a_canary_that_is_not_loaded_is_passed_over(three: list[str]) -> None:
    server = split(three, to=three[0], share=1)
    server.catalog.models[three[0]].chosen.release()
    async with client_of(server) as client:
        assert await answering(client, 5) == {three[USUAL]: 5}
    server = split(three, to=three[0], share=1)
    slots = server.catalog.models[three[USUAL]].slots
    slots["bf16"] = slots[None]
    async with client_of(server) as client:
        for precision, place in (("fp32", 0), ("bf16", USUAL)):
            answer = await client.post(f"/classify?model=lenet5&precision={precision}", content=DIGIT)
            assert (answer.status_code, answer.json()["model"]) == (200, three[place])
    async with client_of(split(three, to="lenet5:mnist5k-00000000", share=1)) as client:
        assert await answering(client, 5) == {three[USUAL]: 5}


@pytest.mark.parametrize(("place", "outcome"), [(0, "differs"), (1, "agrees")])
async def test_a_shadow_gets_the_images_and_answers_nobody(three: list[str], place: int, outcome: str) -> None:
    async with client_of(split(three, shadow=three[place], share=1)) as client:
        assert await answering(client, 10) == {three[USUAL]: 10}
        assert await shadowed(client) == {outcome: 10.0}
        await client.post(f"/classify?model={three[1 - place]}", content=DIGIT)  # is another model's image
        assert sum((await shadowed(client)).values()) == 10


async def test_a_shadow_that_is_not_loaded_or_has_other_classes_is_passed_over(three: list[str]) -> None:
    server = split(three, shadow=three[0], share=1)
    shadow = server.catalog.models[three[0]]
    queue = shadow.chosen.queue
    shadow.chosen.release()
    async with client_of(server) as client:
        assert await answering(client, 2) == {three[USUAL]: 2}
        assert await shadowed(client) == {}
        assert shadow.chosen.queue is None
        shadow.chosen.queue = queue
        other = shadow.published.manifest.model_copy(update={"labels": tuple("abcdefghij")})
        shadow.published = replace(shadow.published, manifest=other)
        assert await answering(client, 2) == {three[USUAL]: 2}
        assert await shadowed(client) == {}


async def test_a_shadow_that_fails_is_counted_and_harms_nobody(three: list[str]) -> None:
    server = split(three, shadow=three[0], share=1)
    put(server, three[0], StubEngine(error=RuntimeError("broken")))
    async with client_of(server) as client:
        assert await answering(client, 3) == {three[USUAL]: 3}
        assert await shadowed(client) == {"failed": 3.0}


async def test_a_shadow_gets_every_image_of_a_request_and_none_of_an_explanation(three: list[str]) -> None:
    async with client_of(split(three, shadow=three[0], share=1)) as client:
        assert (await client.post("/explain?model=lenet5", content=DIGIT)).json()["images"] == 50
        assert await shadowed(client) == {}
        answer = await client.post("/classify?model=lenet5", files=[("image", DIGIT)] * 3)
        assert len(answer.json()["images"]) == 3
        assert await shadowed(client) == {"differs": 3.0}
