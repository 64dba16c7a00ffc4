"""Tests of HAProxy and nginx before three replicas."""

from __future__ import annotations

import json
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from http.client import HTTPSConnection
from pathlib import Path

import httpx
import pytest

from engines.published.store import PublishedModel
from tests.deploy.proxies import STARTS, Proxy
from tests.deploy.replicas import ServedReplica, StandIn, eventually, stand_ins
from tests.serving import ROOT, free_port

DIGIT = (ROOT / "docs" / "digit.png").read_bytes()
CLIENTS = 4
pytestmark = pytest.mark.slow


@pytest.fixture(params=list(STARTS))
def kind(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def before_stand_ins(kind: str, tmp_path: Path) -> Iterator[tuple[Proxy, list[StandIn]]]:
    """Yield a proxy before three stand-ins."""
    with stand_ins(3) as servers, STARTS[kind](tmp_path, [server.port for server in servers]) as proxy:
        yield proxy, servers


@pytest.fixture(scope="module")
def replicas(lenet5: PublishedModel) -> Iterator[list[ServedReplica]]:
    """Yield three servers with lenet5."""
    started = [ServedReplica() for _ in range(3)]
    try:
        for replica in started:
            replica.start()
        for replica in started:
            replica.wait()
        yield started
    finally:
        for replica in started:
            replica.end()


def post(proxy: Proxy, headers: dict[str, str] | None = None) -> httpx.Response:
    """Classify by a connection of its own."""
    return httpx.post(
        f"{proxy.url}/classify?model=lenet5", content=DIGIT, headers=headers, verify=proxy.trusted, timeout=30
    )


@contextmanager
def load(proxy: Proxy) -> Iterator[Counter[int]]:
    """Yield a count of the statuses that clients get which ask all the time; 0 is no answer."""
    seen: Counter[int] = Counter()
    over = threading.Event()

    def ask() -> None:
        while not over.is_set():
            try:
                seen[post(proxy).status_code] += 1
            except httpx.TransportError:
                seen[0] += 1
            time.sleep(0.02)

    with ThreadPoolExecutor(CLIENTS) as pool:
        for _ in range(CLIENTS):
            pool.submit(ask)
        try:
            yield seen
        finally:
            over.set()


def test_a_refusal_passes_with_its_retry_after_and_is_not_asked_again(
    before_stand_ins: tuple[Proxy, list[StandIn]],
) -> None:
    proxy, servers = before_stand_ins
    for _ in range(3):
        answer = post(proxy)
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "7")
        assert answer.json() == {"code": "overloaded"}
    assert sum(len(server.heads) for server in servers) == 3


def test_what_was_begun_is_not_begun_again(before_stand_ins: tuple[Proxy, list[StandIn]]) -> None:
    proxy, servers = before_stand_ins
    for server in servers:
        server.hangs_up = True
    answer = post(proxy)
    assert answer.status_code in {502, 503}
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["code"] in {"replica_lost", "no_replica"}
    assert sum(len(server.heads) for server in servers) == 1


def test_the_log_and_the_replica_have_the_clients_address_and_one_request_id(
    before_stand_ins: tuple[Proxy, list[StandIn]],
) -> None:
    proxy, servers = before_stand_ins
    post(proxy, {"X-Forwarded-For": "1.2.3.4", "X-Request-ID": "mine"})
    post(proxy)
    first, second = (head for server in servers for head in server.heads)
    if second["x-request-id"] == "mine":
        first, second = second, first
    assert first["x-request-id"] == "mine"
    assert first["x-forwarded-for"] == second["x-forwarded-for"] == "127.0.0.1"
    assert first["x-forwarded-proto"] == "https"
    assert len(second["x-request-id"]) >= 32
    for _ in eventually(5):
        lines = [line for line in proxy.log.read_text().splitlines() if "/classify" in line]
        if len(lines) == 2:
            break
    assert all("127.0.0.1" in line for line in lines)
    assert all(any(head["x-request-id"] in line for line in lines) for head in (first, second))


def test_large_bodies_and_the_routes_of_operators_end_at_the_proxy(
    before_stand_ins: tuple[Proxy, list[StandIn]],
) -> None:
    proxy, servers = before_stand_ins
    address = httpx.URL(proxy.url)
    with closing(HTTPSConnection(address.host, address.port, timeout=10, context=proxy.trusted)) as connection:
        connection.putrequest("POST", "/classify?model=lenet5")
        connection.putheader("Content-Length", str(10 * 1024 * 1024 + 1))
        connection.endheaders()  # the answer comes before the body
        refused = connection.getresponse()
        assert (refused.status, json.loads(refused.read())["code"]) == (413, "body_too_large")
    by_protocol = "/v2/repository/models/lenet5/load"
    encoded = ("/m%65trics", "/models/lenet5/lo%61d")
    for path in ("/metrics", "/models/lenet5/load", "/models/lenet5@mnist5k/unload", by_protocol, *encoded):
        assert httpx.get(proxy.url + path, verify=proxy.trusted).status_code == 403
    assert httpx.get(f"{proxy.url}/models/lenet5", verify=proxy.trusted).status_code == 200
    assert not [head for server in servers for head in server.heads]


def test_without_a_replica_clients_are_told_to_come_again(kind: str, tmp_path: Path) -> None:
    with STARTS[kind](tmp_path, [free_port() for _ in range(3)]) as proxy:
        for _ in eventually(10):
            answer = post(proxy)
            if answer.status_code == 503:
                break
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        assert answer.json()["code"] == "no_replica"


def test_three_replicas_are_restarted_in_turn_without_a_failed_request(
    kind: str, replicas: list[ServedReplica], tmp_path: Path
) -> None:
    ports = [replica.port for replica in replicas]
    with STARTS[kind](tmp_path, ports) as proxy, load(proxy) as seen:
        all_up = proxy.replicas.read_text() if proxy.reload else ""
        for replica in replicas:
            if proxy.reload:  # nginx asks no replica whether it is ready
                lines = all_up.replace(f"127.0.0.1:{replica.port} ", f"127.0.0.1:{replica.port} down ")
                assert lines != all_up
                proxy.replicas.write_text(lines)
                subprocess.run(proxy.reload, check=True)
                time.sleep(1)
            replica.stop()
            replica.start()
            replica.wait()
            if proxy.reload:
                proxy.replicas.write_text(all_up)
                subprocess.run(proxy.reload, check=True)
            time.sleep(2)  # until the proxy counts on it again
        assert seen[200] > 100
    assert set(seen) == {200}


def test_of_a_killed_replica_only_what_was_in_flight_is_lost(
    kind: str, replicas: list[ServedReplica], tmp_path: Path
) -> None:
    with STARTS[kind](tmp_path, [replica.port for replica in replicas]) as proxy, load(proxy) as seen:
        time.sleep(2)
        replicas[0].kill()
        time.sleep(4)
        before = seen[200]
        time.sleep(2)
        assert seen[200] > before
        replicas[0].start()
        replicas[0].wait()
        time.sleep(2)
    assert set(seen) <= {200, 502, 503}
    assert seen[502] + seen[503] <= CLIENTS
