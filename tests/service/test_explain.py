"""Tests of /explain: the grid lies where the picture lies, and the request is admitted as the images it costs."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator
from dataclasses import replace

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from engines.published.maps import MAPS
from engines.published.preprocess import Preprocess
from engines.published.store import PublishedModel
from engines.runtimes.engine import EngineError
from models.cost import LayerCost
from service import loading
from service.admission import EngineQueue
from service.context import ServerContext, make_context
from service.cost import BatchCost
from service.explain import FramedPreprocess
from service.loading import Slot
from service.settings import Settings
from service.state_metrics import state_text
from tests.service.stubs import StubEngine, client_of, put
from tests.serving import ROOT

pytestmark = pytest.mark.anyio
DIGIT = (ROOT / "docs" / "digit.png").read_bytes()


async def explain(client: httpx.AsyncClient, model: str, **parameters: str | int | float) -> httpx.Response:
    return await client.post("/explain", params={"model": model, **parameters}, content=DIGIT)


class CornerEngine(StubEngine):
    """Engine for whose class 1 only the contrast in the top left quarter of a picture speaks."""

    def infer(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        logits = np.zeros((len(pixels), 10), np.float32)
        logits[:, 1] = pixels[:, : pixels.shape[1] // 2, : pixels.shape[2] // 2].std((1, 2, 3)) / 10
        return logits


async def test_hiding_a_part_shows_where_the_class_is(stub_server: ServerContext, three: list[str]) -> None:
    put(stub_server, three[0], CornerEngine())
    async with client_of(stub_server) as client:
        answer = await explain(client, three[0])
        explained = answer.json()
        grid = np.array(explained["grid"])
        assert (explained["model"], explained["method"]) == (three[0], "occlusion")
        assert explained["explained"] == {
            "index": 1,
            "label": "1",
            "probability": explained["explained"]["probability"],
        }
        assert (explained["images"], grid.shape) == (50, (7, 7))
        assert grid[:4, :4].max() == grid.max() > 0
        assert np.abs(grid[5:, 5:]).max() == 0
        assert answer.headers["server-timing"].startswith("decode;dur=")
        other = np.array((await explain(client, three[0], **{"class": 3})).json()["grid"])
        assert other.min() < 0  # what speaks for class 1 speaks against class 3
        metrics = (await client.get("/metrics")).text
        assert 'outcome="ok"} 100.0' in metrics
        for stage, images in (("decode", 2), ("inference", 100)):  # what is hidden is not decoded
            labels = f'{{model="{three[0]}",stage="{stage}"}}'
            assert f"convserve_stage_duration_seconds_count{labels} {images}.0" in metrics
        (latency,) = (await client.get(f"/models/{three[0]}/latency")).json()["models"].values()
        assert latency["requests"] == 2


async def test_the_overlay_is_a_picture_of_what_the_network_saw(stub_server: ServerContext, three: list[str]) -> None:
    put(stub_server, three[0], CornerEngine())
    async with client_of(stub_server) as client:
        answer = await explain(client, three[0], format="png")
    assert answer.headers["content-type"] == "image/png"
    picture = np.asarray(Image.open(io.BytesIO(answer.content)).convert("RGB")).astype(int)
    assert picture.shape == (224, 224, 3)
    orange = picture[..., 0] - picture[..., 2]  # the digit is grey
    assert orange[:112, :112].max() > 100
    assert orange[200:, 200:].max() == 0


class MapsStub(StubEngine):
    """Engine with logits and class activation maps; class 1's has a peak at the second row's third cell."""

    precision = MAPS

    def infer(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        maps = np.zeros((len(pixels), 4, 4, 10), np.float32)
        maps[:, 1, 2, 1] = 16
        return np.concatenate([maps.mean((1, 2)), maps.reshape(len(pixels), -1)], axis=1)


def with_global_pooling(model: PublishedModel) -> PublishedModel:
    """Return a model whose costs end in global pooling of 4 x 4 cells and a linear layer."""

    def layer(kind: str, shape: tuple[int, ...], inputs: int) -> LayerCost:
        return LayerCost(
            name=kind,
            type=kind,
            kernel=None,
            output_shape=shape,
            receptive_field=(32, 32),
            params=0,
            macs=0,
            activations=0,
            param_bytes=0,
            input_bytes=4 * inputs,
            output_bytes=0,
        )

    layers = layer("AdaptiveAvgPool2d", (6, 1, 1), 6 * 4 * 4), layer("Linear", (10,), 6)
    complexity = replace(model.manifest.complexity, layers=layers)
    return replace(model, manifest=model.manifest.model_copy(update={"complexity": complexity}))


async def test_a_network_with_global_pooling_has_a_map_for_one_image(
    stub_server: ServerContext, three: list[str]
) -> None:
    model = stub_server.catalog.models[three[0]]
    model.published = with_global_pooling(model.published)
    model.slots[MAPS] = Slot(status="ready", queue=EngineQueue(MapsStub(), BatchCost({1: 0.001}, 32)))
    async with client_of(stub_server) as client:
        explained = (await explain(client, three[0])).json()
        assert (explained["method"], explained["images"], explained["precision"]) == ("class_activation_map", 1, "fp32")
        assert explained["explained"]["index"] == 1
        assert explained["grid"] == [[0, 0, 0, 0], [0, 0, 16, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
        metrics = (await client.get("/metrics")).text
        assert 'outcome="ok"} 1.0' in metrics
        assert f'convserve_queue_depth{{model="{three[0]}",precision="maps"}} 0.0' in metrics


async def test_without_an_engine_of_maps_parts_are_hidden_and_nobody_is_alarmed(
    stub_server: ServerContext, three: list[str]
) -> None:
    model = stub_server.catalog.models[three[0]]
    model.published = with_global_pooling(model.published)
    model.slots[MAPS] = Slot()
    model.slots[MAPS].failed(EngineError("this graph has no maps"))
    async with client_of(stub_server) as client:
        explained = (await explain(client, three[0])).json()
    assert (explained["method"], explained["images"]) == ("occlusion", 50)
    assert f'convserve_model_failed{{model="{three[0]}"}} 0.0' in state_text(stub_server).decode()


async def test_an_engine_of_maps_does_not_prove_that_the_model_can_be_served(
    stub_server: ServerContext, three: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "open_engine", lambda *_, **__: MapsStub())
    model = stub_server.catalog.models[three[2]]
    model.slots = {None: Slot()}
    for precision, proven in ((MAPS, False), (None, True)):
        await stub_server.device.queue(model, precision)
        assert model.proven == proven


async def test_an_explanation_is_admitted_as_the_images_it_costs(stub_server: ServerContext, three: list[str]) -> None:
    queue = put(stub_server, three[0], StubEngine(), 0.1)
    read = []

    async def body() -> AsyncIterator[bytes]:
        read.append(DIGIT)
        yield DIGIT

    async with client_of(stub_server) as client:

        async def coded(deadline_ms: int) -> tuple[int, str]:
            answer = await client.post(f"/explain?model={three[0]}&deadline_ms={deadline_ms}", content=body())
            return answer.status_code, answer.json().get("code", "")

        assert await coded(1000) == (422, "impossible_deadline")  # 17 images of 0.1 s are the fewest
        queue.decoding = 20
        assert await coded(3000) == (503, "overloaded")
        assert not read
        queue.decoding = 0
        assert (await explain(client, three[0], deadline_ms=2000)).json()["images"] == 17
        assert queue.depth == queue.users == 0
        assert 'outcome="overloaded"} 1.0' in (await client.get("/metrics")).text


@pytest.mark.parametrize(("most", "answered"), [(49, 26), (25, 17), (16, "not_explainable")])
async def test_a_grid_has_no_more_images_than_may_wait(three: list[str], most: int, answered: int | str) -> None:
    server = make_context(Settings(max_waiting=most))
    put(server, three[0], StubEngine())
    async with client_of(server) as client:
        explained = (await explain(client, three[0])).json()
    assert explained.get("images", explained.get("code")) == answered


async def test_an_engine_that_fails_is_a_problem(stub_server: ServerContext, three: list[str]) -> None:
    queue = put(stub_server, three[0], StubEngine(error=RuntimeError("device lost")))
    async with client_of(stub_server) as client:
        answer = await explain(client, three[0])
        await asyncio.sleep(0.1)  # the other images leave the queue
    assert (answer.status_code, answer.json()["code"]) == (500, "internal_error")
    assert queue.depth == queue.users == 0


@pytest.mark.parametrize(
    ("model", "parameters", "status", "code"),
    [
        ("auto", {}, 422, "invalid_parameter"),
        ("auto@mnist5k", {}, 422, "invalid_parameter"),
        ("bogus", {}, 404, "unknown_model"),
        ("senet154", {}, 409, "no_weights"),
        ("TAG", {"class": 10}, 422, "invalid_parameter"),
        ("TAG", {"class": -1}, 422, "invalid_parameter"),
        ("TAG", {"class": "one"}, 422, "invalid_parameter"),
        ("TAG", {"format": "gif"}, 422, "invalid_parameter"),
        ("TAG", {"klass": 1}, 422, "invalid_parameter"),
    ],
)
async def test_bad_input_is_a_problem(
    stub_server: ServerContext, three: list[str], model: str, parameters: dict[str, str], status: int, code: str
) -> None:
    async with client_of(stub_server) as client:
        answer = await explain(client, model.replace("TAG", three[0]), **parameters)
        assert (answer.status_code, answer.json()["code"]) == (status, code)


@pytest.mark.parametrize("path", ["/explain?model=", "/compare?models="])
async def test_a_form_of_several_images_is_a_problem(stub_server: ServerContext, three: list[str], path: str) -> None:
    async with client_of(stub_server) as client:
        answer = await client.post(path + three[0], files=[("image", DIGIT)] * 2)
    assert (answer.status_code, answer.json()["code"]) == (422, "several_images")


async def test_a_bad_picture_is_a_problem(stub_server: ServerContext, three: list[str]) -> None:
    queue = stub_server.catalog.models[three[0]].chosen.queue
    assert queue
    async with client_of(stub_server) as client:
        answer = await client.post(f"/explain?model={three[0]}", content=b"no picture")
    assert (answer.status_code, answer.json()["code"]) == (415, "unsupported_format")
    assert queue.depth == queue.users == 0


async def test_lenet5_reads_the_digit_where_its_ink_is(lenet5: PublishedModel) -> None:
    async with client_of(make_context(Settings(runtime="openvino", tune="off"))) as client:
        explained = (await explain(client, "lenet5")).json()
        classified = (await client.post("/classify?model=lenet5&top_k=1", content=DIGIT)).json()
    assert explained["explained"] == pytest.approx(classified["predictions"][0])
    grid = np.array(explained["grid"])
    assert grid[1:-1, 1:-1].max() == grid.max() > 0
    assert (grid > grid.max() / 5).sum() >= 5  # along the stroke, although no hidden part makes the network unsure


def test_the_part_that_was_seen_is_in_shares_of_the_picture() -> None:
    photo = Image.new("RGB", (300, 200))
    cropped = FramedPreprocess(**vars(Preprocess(mode="RGB", resize_edge=200, crop=200)))
    cropped(photo)
    box = cropped.seen[0]
    assert (box.left, box.top, box.right, box.bottom) == pytest.approx((1 / 6, 0, 5 / 6, 1))
    padded = FramedPreprocess(**vars(Preprocess(mode="L", resize_edge=28, crop=28, pad=2)))
    assert padded(Image.new("L", (28, 28))).shape == (32, 32, 1)
    box = padded.seen[0]
    assert (box.left, box.top, box.right, box.bottom) == pytest.approx((-1 / 14, -1 / 14, 15 / 14, 15 / 14))
