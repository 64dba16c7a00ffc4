"""Tests of named clients: their limits, their shares of a device, and what the log and the metrics say of them."""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
from pathlib import Path
from time import perf_counter
from typing import Any

import pytest

from engines.published.store import PublishedModel
from loadtest.scale.virtual_time import now, simulated
from service.admission import Overloaded, QueuePlaces
from service.client_queue import ClientQueue
from service.clients import NOBODY, SHADOWS, Client, ClientLimits, Clients, ClientUsage, LimitReached, current
from service.scheduler import Scheduler
from service.settings import Settings
from tests.service.stubs import StubEngine, client_of, put
from tests.service.test_access import DIGIT, served
from tests.service.test_scheduler import ExactDevice, ask


def limits(key: str, **changes: float) -> ClientLimits:
    """Return the limits of a client with a key."""
    return ClientLimits.model_validate({"key_sha256": hashlib.sha256(key.encode()).hexdigest(), **changes})


def only(**changes: float) -> Client:
    """Return the client of the key "one"."""
    found = Clients({"shop": limits("one", **changes)}).find(["", "one"])
    assert found
    return found


class WaitingImage:
    """Image that waits in a ClientQueue."""

    def __init__(self, client: Client) -> None:
        self.client, self.start = client, 0.0


def test_a_client_is_found_by_its_key_and_nobody_by_another() -> None:
    clients = Clients({"shop": limits("one"), "app": limits("two")})
    names = [found and found.name for found in (clients.find([key]) for key in ("one", "two", "three", ""))]
    assert names == ["shop", "app", None, None]
    assert [client.name for client in clients.by_number] == ["", "app", "shop"]
    assert Clients({}).find(["one"]) is None


def test_a_rate_lets_a_burst_through_and_then_one_at_a_time() -> None:
    client = only(rate=10, burst=3)
    for _ in range(3):
        client.admit(100.0)
    with pytest.raises(LimitReached) as refused:
        client.admit(100.0)
    assert refused.value.wait_s == pytest.approx(0.1)
    assert refused.value.headers == {
        "Retry-After": "1",
        "RateLimit-Policy": '"requests";q=3;w=1',
        "RateLimit": '"requests";r=0;t=1',
    }
    client.admit(100.1)
    with pytest.raises(LimitReached):
        client.admit(100.1)
    answered = 0
    for tick in range(10_000):  # of a millisecond each
        try:
            client.admit(200.0 + tick / 1000)
            answered += 1
        except LimitReached:
            pass
    assert 100 <= answered <= 103


def test_a_quota_of_device_time_is_kept_over_time() -> None:
    client = only(device_ms_per_s=100)
    used_s, at, refusing = 0.0, 50.0, set()
    while at < 150.0:
        try:
            client.admit(at)
        except LimitReached as refused:
            refusing.add(refused.limit)
            at += refused.wait_s + 1e-6
        else:
            client.charge(0.185, at)
            used_s += 0.185
    assert used_s == pytest.approx(10.0, rel=0.05)  # a tenth of 100 s
    assert refusing == {"device-ms"}


def test_the_fronts_of_a_server_count_together(tmp_path: Path) -> None:
    fronts = [Clients({"shop": limits("one", rate=1, burst=4)}, tmp_path / "clients") for _ in range(2)]
    clients = [front.find(["one"]) for front in fronts]
    for turn in range(4):
        client = clients[turn % 2]
        assert client
        client.admit(10.0)
    for client in clients:
        assert client
        with pytest.raises(LimitReached):
            client.admit(10.0)


def test_one_clients_images_keep_their_order() -> None:
    queue: ClientQueue[WaitingImage] = ClientQueue()
    images = [WaitingImage(NOBODY) for _ in range(5)]
    for image in images:
        queue.append(image)
    queue.remove(images[2])
    with pytest.raises(ValueError, match="does not wait"):
        queue.remove(WaitingImage(only()))
    assert [queue.popleft() for _ in range(len(queue))] == [images[place] for place in (0, 1, 3, 4)]
    with pytest.raises(IndexError):
        queue.first()


def test_of_many_clients_each_gets_its_weight_and_what_is_ahead_is_known() -> None:
    choice = random.Random(0)
    clients = [Client(number, str(number), weight) for number, weight in enumerate((1.0, 2.0, 5.0))]
    queue: ClientQueue[WaitingImage] = ClientQueue()
    for _ in range(3000):
        queue.append(WaitingImage(choice.choice(clients)))
    taken = [queue.popleft().client for _ in range(1400)]
    for client in clients:
        assert taken.count(client) == pytest.approx(1400 * client.weight / 8, rel=0.05)
    late = Client(9, "late", 4.0)
    assert queue.ahead(late) == 4  # one each of the lighter clients, and two of the one of weight 5
    image = WaitingImage(late)
    queue.append(image)
    ran = [queue.popleft() for _ in range(5)]
    assert image in ran
    while queue:
        queue.popleft()
    assert queue.ahead(late) == 0


def test_two_clients_share_a_device_as_their_weights() -> None:
    async def main() -> None:
        device = ExactDevice()
        queue, scheduler = device.queue(0.01, gain=0.5), Scheduler(10_000, device, now)
        clients = {"light": Client(1, "light", 1.0, part=0.25), "heavy": Client(2, "heavy", 3.0, part=0.75)}
        answered = dict.fromkeys(clients, 0)

        async def flood(name: str) -> None:
            current.set(clients[name])
            while now() < 20:
                await ask(scheduler, queue)
                answered[name] += 1

        floods = [asyncio.create_task(flood(name)) for name in clients for _ in range(32)]
        await asyncio.gather(*floods)
        assert answered["heavy"] / answered["light"] == pytest.approx(3, rel=0.05)
        assert sum(answered.values()) * 0.005 == pytest.approx(20, rel=0.05)  # the device was never idle

    simulated(main())


def test_a_flood_of_one_client_neither_refuses_nor_delays_another() -> None:
    async def main() -> None:
        device = ExactDevice()
        queue, scheduler = device.queue(0.1, gain=1.0), Scheduler(100, device, now)
        flooding, other = Client(1, "flood", 1.0, part=0.45), Client(2, "other", 1.0, part=0.45)

        async def one(client: Client, within_s: float) -> float:
            current.set(client)
            began = now()
            await ask(scheduler, queue, within_s=within_s)
            return now() - began

        flood = [asyncio.create_task(one(flooding, 1000.0)) for _ in range(60)]
        await asyncio.sleep(0.05)
        assert await asyncio.create_task(one(other, 1.0)) < 1.0  # behind what runs, and one of the flood
        refused = [error for error in await asyncio.gather(*flood, return_exceptions=True) if error]
        too_many = [error for error in refused if isinstance(error, Overloaded)]
        assert len(too_many) >= 60 - 46
        assert "of this client wait already" in str(too_many[0])

    simulated(main())


def test_shadows_that_let_others_pass_make_nobody_expect_a_longer_wait() -> None:
    async def main() -> tuple[float, float]:
        device = ExactDevice()
        scheduler, queue = Scheduler(100, device, now), device.queue(1.0, best=1)

        async def shadow() -> float:
            current.set(SHADOWS)
            answer, _ = await ask(scheduler, queue)
            return answer.queue_ms

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(ask(scheduler, queue))
            await asyncio.sleep(0.1)
            shadows = [tasks.create_task(shadow()) for _ in range(2)]
            for _ in range(20):  # one waits always
                tasks.create_task(ask(scheduler, queue))
                await asyncio.sleep(1)
        return max(task.result() for task in shadows), queue.wait_factor()

    waited_ms, factor = simulated(main())
    assert waited_ms > 9000  # and two seconds were expected
    assert factor == pytest.approx(1, abs=0.05)


def test_large_requests_of_one_client_refuse_nobody_elses() -> None:
    async def main() -> None:
        device = ExactDevice()
        queue, scheduler = device.queue(0.1, gain=1.0), Scheduler(1000, device, now)
        flooding, other = Client(1, "flood", 1.0, part=0.25), Client(2, "other", 1.0, part=0.25)
        current.set(flooding)
        with QueuePlaces(scheduler, queue, 1000.0, 200):
            assert queue.ahead(1, other) == 0
            assert (queue.ahead(8), queue.ahead(8, flooding), queue.ahead(8, other)) == (200, 200, 8)
            scheduler.check(queue, 1000.0, images=50)
            with pytest.raises(Overloaded, match="200 images of this client wait already"):
                scheduler.check(queue, 1000.0, images=60)
            current.set(other)
            scheduler.check(queue, 1.7, images=8)  # behind as many of the flood's
            scheduler.check(queue, 1000.0, images=300)  # more than its part, but the client has no other images
            with pytest.raises(Overloaded, match="would take 1600 ms"):
                scheduler.check(queue, 1.5, images=8)
        assert queue.reserved == queue.depth == 0

    simulated(main())


@pytest.mark.anyio
async def test_each_image_is_charged_to_its_client(lenet5: PublishedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    shop = {"key_sha256": hashlib.sha256(b"one").hexdigest(), "device_ms_per_s": 1.0}
    server, key = served(lenet5, clients={"shop": shop}), {"X-API-Key": "one"}
    queue = put(server, lenet5.manifest.tag, StubEngine(), 0.001)
    monkeypatch.setattr(queue.cost, "observe", lambda *_: None)  # each image is predicted to take 1 ms
    usage = server.clients.by_number[1].usage
    assert usage
    requests: list[tuple[str, dict[str, Any], int]] = [
        ("/classify?model=lenet5", {"files": [("image", DIGIT)] * 3}, 3),
        ("/explain?model=lenet5", {"content": DIGIT}, 50),
    ]
    async with client_of(server) as client:
        for path, body, images in requests:
            with usage.of(1) as until:
                until[:] = 0
            assert (await client.post(path, headers=key, **body)).status_code == 200
            with usage.of(1) as until:
                assert until[1] - server.scheduler.clock() == pytest.approx(images, abs=1)
            limited = await client.post(path, headers=key, **body)
            assert (limited.status_code, limited.json()["code"]) == (429, "limit_reached")
        limited = await client.post("/v2/models/lenet5/infer", headers=key, json={})
        assert (limited.status_code, limited.json()) == (429, {"error": "the client has used up its device-ms"})


@pytest.mark.anyio
async def test_over_http_a_client_is_named_and_refused_with_the_time_to_come_again(
    lenet5: PublishedModel, capsys: pytest.CaptureFixture[str]
) -> None:
    shop = {"key_sha256": hashlib.sha256(b"one").hexdigest(), "rate": 0.001, "burst": 2}
    server = served(lenet5, clients={"shop": shop}, api_keys=["old"])
    assert len(server.clients.by_number) == 2

    async with client_of(server) as client:

        async def status(key: str, path: str = "/classify?model=lenet5") -> int:
            return (await client.post(path, content=DIGIT, headers={"X-API-Key": key})).status_code

        assert [await status("none"), await status("old"), await status("one")] == [401, 200, 200]
        capsys.readouterr()
        assert await status("one", "/compare?models=lenet5") == 200
        refused = await client.post("/classify?model=lenet5", content=DIGIT, headers={"Authorization": "Bearer one"})
        assert (refused.status_code, refused.json()["code"]) == (429, "limit_reached")
        assert int(refused.headers["retry-after"]) > 900
        assert refused.headers["ratelimit-policy"].startswith('"requests";q=2;w=')
        assert await status("old") == 200
        lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert [(line["status"], line.get("client")) for line in lines] == [(200, "shop"), (429, "shop"), (200, None)]
        metrics = (await client.get("/metrics", headers={"X-API-Key": "old"})).text
    assert 'convserve_client_requests_total{client="shop",status="200"} 2.0' in metrics
    assert 'convserve_client_requests_total{client="shop",status="429"} 1.0' in metrics
    assert 'convserve_client_device_seconds_total{client="shop"}' in metrics


@pytest.mark.anyio
async def test_a_key_of_a_client_alone_closes_the_server(lenet5: PublishedModel) -> None:
    server = served(lenet5, clients={"shop": {"key_sha256": hashlib.sha256(b"one").hexdigest()}})
    assert Settings().needs_key is False
    async with client_of(server) as client:
        assert (await client.get("/models")).status_code == 401
        assert (await client.get("/models", headers={"X-API-Key": "one"})).status_code == 200


def test_a_refusal_costs_less_than_a_third_of_a_millisecond(tmp_path: Path) -> None:
    many = {f"client-{number}": limits(str(number), rate=1e-6, burst=1) for number in range(200)}
    clients = Clients(many, tmp_path / "clients")
    began, refused = perf_counter(), 0
    for _ in range(1000):
        client = clients.find(["7"])
        assert client
        try:
            client.admit(1.0)
        except LimitReached as error:
            refused += len(error.headers) > 0
    assert (perf_counter() - began) / 1000 < 0.0003
    assert refused == 999


def test_without_limits_nothing_is_counted() -> None:
    usage = ClientUsage(2)
    client = Client(1, "shop", 1.0, 1.0, limits("one"), usage)
    client.admit(1.0)
    client.charge(1.0, 1.0)
    with usage.of(1) as until:
        assert until.tolist() == [0.0, 0.0]
