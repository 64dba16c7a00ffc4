"""Tests of requests with several images: forms, answers in order, and fairness to single images, in simulated time."""

from __future__ import annotations

import asyncio
import json
from base64 import b64encode
from collections.abc import AsyncIterator, Sequence
from math import prod
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.types import Message

from engines.published.store import PublishedModel
from loadtest.scale.virtual_time import now, simulated
from service.admission import EngineQueue, Overloaded
from service.application import create_application
from service.context import ServerContext, make_context
from service.errors import Problem
from service.inference import ImageAnswer
from service.scheduler import Scheduler
from service.settings import Settings
from service.several_images import ImageInput, infer_read
from tests.service.problems import problem
from tests.service.stubs import StubEngine, client_of, put
from tests.service.test_compare import SlowEngine
from tests.service.test_images import LIMIT, to_pixels
from tests.service.test_remote import WAITING, numbered, split
from tests.service.test_scheduler import ExactDevice, ask, image
from tests.serving import ROOT

pytestmark = pytest.mark.anyio
DIGIT = (ROOT / "docs" / "digit.png").read_bytes()
BASE64, NO_PICTURE = b64encode(DIGIT).decode(), b64encode(b"no picture").decode()


@pytest.fixture
def few(three: list[str]) -> ServerContext:
    """Return a server with one decoder: a request has three images under way if batches are of one."""
    return make_context(Settings(decoders=1, tune="off"))


@pytest.fixture
def device() -> ExactDevice:
    return ExactDevice()


async def ask_many(
    server: ServerContext, tag: str, queue: EngineQueue, images: Sequence[ImageInput], within_s: float = 1000.0
) -> list[ImageAnswer | Problem]:
    """Return the results of one request with these images."""
    async with asyncio.timeout(within_s) as until:
        with queue.in_use():
            return await infer_read(server, server.catalog.models[tag], queue, images, until)


def shown(result: ImageAnswer | Problem) -> float | str:
    """Return the first logit of an answer, or the code of a problem."""
    return result.code if isinstance(result, Problem) else float(result.logits[0])


def test_requests_of_many_images_do_not_starve_single_ones(
    few: ServerContext, three: list[str], device: ExactDevice
) -> None:
    async def main() -> None:
        queue, scheduler = device.queue(1.0, best=1), Scheduler(1000, device, now)
        few.device.admission = scheduler
        many = [asyncio.create_task(ask_many(few, three[0], queue, [image(1)] * 64)) for _ in range(2)]
        waits = []
        for _ in range(10):
            await asyncio.sleep(2.3)
            waits.append((await ask(scheduler, queue, within_s=8.0))[0].queue_ms)  # which is not refused
        assert max(waits) <= 6000.1  # three images of each request
        for results in await asyncio.gather(*many):
            assert list(map(shown, results)) == [1.0] * 64
        assert now() == pytest.approx(2 * 64 + 10)  # the device was never idle
        assert queue.depth == queue.reserved == 0

    simulated(main())


def test_admission_counts_images(few: ServerContext, three: list[str], device: ExactDevice) -> None:
    async def main() -> None:
        queue, scheduler = device.queue(1.0, best=1), Scheduler(1000, device, now)
        few.device.admission = scheduler
        first = asyncio.create_task(ask_many(few, three[0], queue, [image(1)] * 64))
        await asyncio.sleep(0.5)
        assert (queue.depth, queue.reserved) == (2, 61)
        with pytest.raises(Overloaded, match="would take 127500 ms, of which 100000 ms are left"):
            await ask_many(few, three[0], queue, [image(1)] * 64, within_s=100)
        with pytest.raises(Problem, match=r"needs 64000\.0 ms for 64 images; 50000\.0 ms are left"):
            await ask_many(few, three[0], queue, [image(1)] * 64, within_s=50)
        with pytest.raises(Problem, match="a request may have at most 64 images"):
            await ask_many(few, three[0], queue, [image(1)] * 65)
        with pytest.raises(Problem, match="the request has no image"):
            await ask_many(few, three[0], queue, [])
        assert queue.reserved == 61
        await first
        assert queue.depth == queue.reserved == 0

    simulated(main())


def test_images_that_miss_the_deadline_take_no_answer_from_the_others(
    few: ServerContext, three: list[str], device: ExactDevice
) -> None:
    async def main() -> None:
        queue, few.device.admission = device.queue(1.0, best=1), Scheduler(1000, device, now)
        device.seconds = 2.0  # twice what is predicted
        images = [image(value) for value in range(1, 9)]
        results = await ask_many(few, three[0], queue, images, within_s=9.5)
        assert list(map(shown, results)) == [1.0, 2.0, 3.0, 4.0, *["timeout"] * 4]
        assert now() == pytest.approx(9.5)
        assert queue.depth == queue.reserved == 0
        await asyncio.sleep(1)  # for the end of the batch

    simulated(main())


def test_a_request_that_is_given_up_leaves_nothing_behind(
    few: ServerContext, three: list[str], device: ExactDevice
) -> None:
    async def main() -> None:
        queue, scheduler = device.queue(1.0, best=1), Scheduler(1000, device, now)
        few.device.admission = scheduler
        task = asyncio.create_task(ask_many(few, three[0], queue, [image(1)] * 64))
        await asyncio.sleep(2.5)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert queue.depth == queue.reserved == queue.users == 0
        assert (await ask(scheduler, queue, 7))[0].logits.tolist() == [7]
        assert now() == pytest.approx(4.0)  # after the batch that ran

    simulated(main())


def test_an_image_that_fails_does_so_in_its_place(few: ServerContext, three: list[str], device: ExactDevice) -> None:
    async def main() -> None:
        queue, few.device.admission = device.queue(1.0, gain=0.5), Scheduler(1000, device, now)
        images: list[ImageInput] = [image(1), image(255), Problem(400, "broken_base64", "no base64"), image(4)]
        results = await ask_many(few, three[0], queue, images)
        assert list(map(shown, results)) == [1.0, "internal_error", "broken_base64", 4.0]

    simulated(main())


async def test_images_of_a_request_go_through_a_device_process(three: list[str], tmp_path: Path) -> None:
    async with split(three[0], tmp_path) as both:
        queue = await both.front.device.queue(both.front.catalog.models[both.tag])
        images = [numbered(number) for number in range(60)]
        results = await ask_many(both.front, both.tag, queue, images)
        assert list(map(shown, results)) == list(range(60))
        await both.free(WAITING)
        both.engine.seconds = 0.05
        task = asyncio.create_task(ask_many(both.front, both.tag, queue, images))
        await asyncio.sleep(0.05)
        assert queue.ahead(2) > queue.ahead(1) + 20
        assert both.process.table.reserved.sum() > 20
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await both.free(WAITING)
        assert queue.ahead(2) == both.process.table.reserved.sum() == 0


def test_fewer_images_may_wait_than_a_request_may_have() -> None:
    assert Settings().images_at_most == 64
    assert Settings(max_waiting=10).images_at_most == 10


def files(*bodies: bytes) -> list[tuple[str, tuple[str, bytes]]]:
    """Return the parts `image` of a form."""
    return [("image", ("a.png", body)) for body in bodies]


async def test_every_form_answers_in_order(stub_server: ServerContext, three: list[str]) -> None:
    shape = stub_server.catalog.models[three[0]].manifest.preprocess.shape
    raw = {"content": bytes(2 * prod(shape)), "headers": {"X-Shape": f"2, {','.join(map(str, shape))}"}}
    requests: list[tuple[dict[str, Any], list[str]]] = [
        ({"files": files(DIGIT, b"no picture", DIGIT)}, ["0", "unsupported_format", "0"]),
        ({"files": [("text", (None, "x")), *files(DIGIT, DIGIT, b"")]}, ["0", "0", "empty_image"]),
        (
            {"json": {"images": [BASE64, "%%", NO_PICTURE, BASE64]}},
            ["0", "broken_base64", "unsupported_format", "0"],
        ),
        ({"json": {"images": [f"{BASE64[:76]}\r\n{BASE64[76:]}\n"]}}, ["0"]),
        (raw, ["0", "0"]),
    ]
    answered = failed = 0
    async with client_of(stub_server) as client:
        for request, expected in requests:
            response = await client.post(f"/classify?model={three[0]}&top_k=2", **request)
            answer = response.json()
            assert response.status_code == 200
            assert answer.keys() == {"model", "runtime", "precision", "images"}
            found = []
            for row in answer["images"]:
                if "predictions" in row:
                    assert row.keys() == {"predictions", "batch_size", "timing_ms"}
                    assert len(row["predictions"]) == 2
                    found.append(row["predictions"][0]["label"])
                else:
                    assert row.keys() == {"title", "status", "code", "detail"}
                    found.append(row["code"])
            assert found == expected
            answered += expected.count("0")
            failed += expected.count("unsupported_format")
        metrics = (await client.get("/metrics")).text
    assert f'outcome="ok"}} {answered}.0' in metrics
    assert f'outcome="unsupported_format"}} {failed}.0' in metrics


async def test_one_image_is_answered_as_ever(stub_server: ServerContext, three: list[str]) -> None:
    shape = stub_server.catalog.models[three[0]].manifest.preprocess.shape
    requests: list[dict[str, Any]] = [
        {"content": DIGIT},
        {"content": DIGIT, "headers": {"Content-Type": "application/json"}},
        {"content": DIGIT, "headers": {"Content-Type": "application/octet-stream"}},
        {"files": files(DIGIT)},
        {"files": files(b"", DIGIT)},
        {"content": bytes(prod(shape)), "headers": {"X-Shape": ",".join(map(str, shape))}},
    ]
    async with client_of(stub_server) as client:
        responses = [await client.post(f"/classify?model={three[0]}", **request) for request in requests]
    for response in responses:
        assert response.headers["Server-Timing"].startswith("decode;dur=")
    assert len({str(response.json() | {"timing_ms": None}) for response in responses}) == 1


async def test_auto_chooses_once_for_all_images(stub_server: ServerContext, three: list[str]) -> None:
    async with client_of(stub_server) as client:
        answer = (await client.post("/classify?model=auto&max_latency_ms=200", files=files(DIGIT, DIGIT))).json()
    assert answer["model"] == three[2]
    assert answer["choice"]["reason"]
    assert [row["predictions"][0]["label"] for row in answer["images"]] == ["1", "1"]


@pytest.mark.parametrize(
    ("request_", "expected", "detail"),
    [
        ({"json": {"images": ["%%", ""]}}, (400, "broken_base64"), "the image is not in base64"),
        ({"json": {"images": []}}, (400, "empty_image"), "the request has no image"),
        ({"json": {"images": [BASE64] * 65}}, (413, "too_many_images"), "a request may have at most 64 images"),
        ({"files": files(*[DIGIT] * 65)}, (413, "too_many_images"), "at most 64 images"),
        ({"files": files(*[DIGIT] * 200)}, (413, "too_many_images"), "at most 64 images"),
        ({"json": {"images": [1] * 100_000}}, (413, "too_many_images"), "at most 64 images"),
        ({"json": {"image": BASE64}}, (400, "broken_json"), 'the form is {"images": ["base64 of a file", …]}'),
        ({"json": {"images": [BASE64, 7]}}, (400, "broken_json"), "images.1: Input should be a valid string"),
        ({"json": [BASE64]}, (400, "broken_json"), "the form is"),
        ({"content": b"{", "headers": {"Content-Type": "application/json"}}, (400, "broken_json"), "Invalid JSON"),
        ({"content": b"x", "headers": {"X-Shape": "28,28"}}, (422, "wrong_shape"), "or n,"),
        ({"content": b"x", "headers": {"X-Shape": "1,2,3"}}, (422, "wrong_shape"), "X-Shape: lenet5:mnist5k-aaaaaaaa"),
        ({"content": b"x", "headers": {"X-Shape": "0,SHAPE"}}, (422, "wrong_shape"), "for n images"),
        ({"content": b"x", "headers": {"X-Shape": "2,SHAPE"}}, (422, "wrong_shape"), "bytes; the body has 1"),
    ],
)
async def test_what_is_wrong_with_the_request_is_told(
    stub_server: ServerContext, three: list[str], request_: dict[str, Any], expected: tuple[int, str], detail: str
) -> None:
    shape = ",".join(map(str, stub_server.catalog.models[three[0]].manifest.preprocess.shape))
    headers = {name: value.replace("SHAPE", shape) for name, value in request_.get("headers", {}).items()}
    async with client_of(stub_server) as client:
        response = await client.post(f"/classify?model={three[0]}", **request_ | {"headers": headers})
        metrics = (await client.get("/metrics")).text
    assert problem(response) == expected
    assert detail in response.json()["detail"]
    rows = response.json().get("images", [])
    assert all(row["code"] in {"broken_base64", "empty_image"} for row in rows)
    assert f'outcome="{expected[1]}"}} 1.0' in metrics


async def test_too_many_raw_images_are_refused_unread(stub_server: ServerContext, three: list[str]) -> None:
    shape = ",".join(map(str, stub_server.catalog.models[three[0]].manifest.preprocess.shape))
    read = []

    async def body() -> AsyncIterator[bytes]:
        read.append(1)
        yield b"\0"

    async with client_of(stub_server) as client:
        answers = [
            await client.post(f"/classify?model={three[2]}{limit}", content=body(), headers={"X-Shape": f"{n},{shape}"})
            for n, limit in ((65, ""), (64, "&deadline_ms=5000"))
        ]
    assert list(map(problem, answers)) == [(413, "too_many_images"), (422, "impossible_deadline")]
    assert not read


@pytest.mark.parametrize("count", [1, 8])
@pytest.mark.parametrize("path", ["/classify", "/v2/models/lenet5/infer"])
async def test_a_client_that_goes_away_ends_its_images(
    stub_server: ServerContext, three: list[str], path: str, count: int
) -> None:
    queues = [put(stub_server, tag, SlowEngine()) for tag in three]
    tensor = {"name": "image", "datatype": "BYTES", "shape": [count], "data": [BASE64] * count}
    body = {"images": [BASE64] * count} if path == "/classify" else {"inputs": [tensor]}
    messages: list[Message] = [{"type": "http.request", "body": json.dumps(body).encode()}, {"type": "http.disconnect"}]
    sent: list[Message] = []

    async def receive() -> Message:
        return messages.pop(0)

    async def send(message: Message) -> None:
        sent.append(message)

    query = b"model=lenet5" if path == "/classify" else b""
    scope = {"type": "http", "method": "POST", "path": path, "query_string": query, "http_version": "1.1"}
    async with asyncio.timeout(0.9):  # less than an inference takes
        await create_application(stub_server)(
            scope | {"headers": [(b"content-type", b"application/json")]}, receive, send
        )
    assert (sent[0]["status"], b"the client went away" in sent[1]["body"]) == (400, True)
    assert [(queue.users, queue.depth, queue.reserved) for queue in queues] == [(0, 0, 0)] * len(queues)
    assert stub_server.bodies.count == 0


def test_a_server_answers_several_images_as_single_ones(server: httpx.Client, lenet5: PublishedModel) -> None:
    url = "/classify?model=lenet5&top_k=1"
    (single,) = server.post(url, content=DIGIT).json()["predictions"]
    pixels = to_pixels(DIGIT, lenet5.manifest.preprocess, LIMIT)
    shape = ",".join(map(str, pixels.shape))
    requests: list[dict[str, Any]] = [
        {"files": files(*[DIGIT] * 32)},
        {"json": {"images": [BASE64] * 32}},
        {"content": pixels.tobytes() * 32, "headers": {"X-Shape": f"32,{shape}"}},
    ]
    for request in requests:
        rows = server.post(url, **request).json()["images"]
        assert len(rows) == 32
        for row in rows:
            (prediction,) = row["predictions"]
            assert prediction["label"] == single["label"] == "7"
            assert prediction["probability"] == pytest.approx(single["probability"], abs=1e-3)


async def test_pixels_do_not_wait_for_decoders(few: ServerContext, three: list[str]) -> None:
    height, width, channels = few.catalog.models[three[0]].manifest.preprocess.shape
    put(few, three[0], StubEngine())
    few.decoders.observe(100)  # a tenth moves the mean
    headers = {"Content-Type": "application/octet-stream", "X-Shape": f"2,{height},{width},{channels}"}
    body, query = bytes(2 * height * width * channels), {"model": three[0], "deadline_ms": "2000"}
    async with client_of(few) as client:
        assert (await client.post("/classify", params=query, content=body, headers=headers)).status_code == 200
        files = [("image", ("digit.png", DIGIT))] * 2
        assert (await client.post("/classify", params=query, files=files)).status_code == 503
