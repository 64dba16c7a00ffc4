"""Tests of hostile requests: each is refused within its time limit and harms no other request."""

from __future__ import annotations

import re
import select
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from urllib.parse import quote

import httpx
import psutil
import pytest
from PIL import Image

from engines.published.store import PublishedModel
from tests.service.bombs import BOMBS, jpeg_of_scans, large_png, rle_bmp
from tests.service.problems import answer_to, problem
from tests.service.test_images import chunks_of, encoded, png
from tests.service.test_server import DIGIT, HEAD, MEBIBYTE, classify
from tests.serving import serving

TIMEOUT_S = 2.0
MAX_GROWTH_MB = 80.0
SOON_S = 1.0  # longest time to answer a good request
FORM = {"content-type": "multipart/form-data; boundary=x"}
PART = b'--x\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n'


@dataclass(frozen=True)
class Victim:
    """Server whose time limit for a request is 2 seconds."""

    client: httpx.Client
    pid: int

    def memory_mb(self) -> float:
        """Return the resident memory of the process tree in MB."""
        parent = psutil.Process(self.pid)
        return sum(process.memory_info().rss for process in [parent, *parent.children(recursive=True)]) / 1e6

    def connect(self) -> socket.socket:
        url = self.client.base_url
        return socket.create_connection((url.host, url.port or 80), timeout=10)

    def seconds_of_a_good_request(self) -> float:
        started = time.monotonic()
        assert classify(self.client, DIGIT).status_code == 200
        return time.monotonic() - started


@pytest.fixture(scope="module")
def a_server(lenet5: PublishedModel) -> Iterator[Victim]:
    with serving(CONVSERVE_RUNTIME="null", CONVSERVE_TIMEOUT_S=str(TIMEOUT_S)) as (client, pid):
        target = Victim(client, pid)
        with ThreadPoolExecutor(16) as pool:  # memory of the first requests is taken before the test
            list(pool.map(lambda _: classify(client, large_png(1000, 1000)), range(32)))
        yield target


@pytest.fixture
def target(a_server: Victim) -> Iterator[Victim]:
    """Yield the server; after the test it must answer a good request soon and must not have grown."""
    before = a_server.memory_mb()
    yield a_server
    assert a_server.seconds_of_a_good_request() < SOON_S
    deadline = time.monotonic() + 10  # decoding continues after its client went away
    while (grown := a_server.memory_mb() - before) > MAX_GROWTH_MB:
        assert time.monotonic() < deadline, f"{grown:.0f} MB more than before"
        time.sleep(0.1)


# Pictures


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_decompression_bomb_is_refused_unopened(target: Victim, bomb: str) -> None:
    body, before = BOMBS[bomb](), target.memory_mb()
    assert len(body) < 500_000
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(classify, target.client, body)
        peak = before
        while not answer.done():
            peak = max(peak, target.memory_mb())
            time.sleep(0.005)
    assert problem(answer.result()) in {(413, "too_many_pixels"), (400, "broken_image")}
    assert peak - before < MAX_GROWTH_MB


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(lambda: jpeg_of_scans(7000, 5000), id="JPEG of 5,000 scans"),  # 20 s; 10 MB of scans: 7 min
        pytest.param(lambda: rle_bmp(50_000_000, 1, b"\1\1\0\0\0\1"), id="BMP of one long run"),  # takes 7 s, from 1 kB
    ],
)
def test_no_small_picture_takes_a_decoder_for_long(target: Victim, body: Callable[[], bytes]) -> None:
    assert problem(classify(target.client, body()))[0] in {400, 413, 415}


def test_a_png_may_have_some_text(target: Victim) -> None:
    body = png(*(chunks := chunks_of(DIGIT))[:1], (b"tEXt", b"Comment\0seven"), *chunks[1:])
    assert classify(target.client, body).status_code == 200


# Clients that are slow, or wrong about lengths


def test_slow_bodies_end_in_a_timeout_and_keep_nobody_waiting(target: Victim) -> None:
    def drip(_: int) -> tuple[int, str]:
        with target.connect() as connection:
            connection.sendall(f"{HEAD}Content-Length: 1000\r\n\r\n".encode())
            while not select.select([connection], [], [], 0.75)[0]:  # a byte every 0.75 s until the answer comes
                connection.sendall(b"x")
            return answer_to(connection)

    with ThreadPoolExecutor(50) as pool:
        slow = pool.map(drip, range(50))
        waits = [target.seconds_of_a_good_request() for _ in range(50)]
        assert set(slow) == {(504, "timeout")}
    assert max(waits) < SOON_S


def test_heads_that_never_end_are_not_waited_for(target: Victim) -> None:
    connections = [target.connect() for _ in range(50)]
    for connection in connections:
        connection.sendall(HEAD.encode())
    deadline = time.monotonic() + 15
    for connection in connections:
        with connection:
            assert select.select([connection], [], [], deadline - time.monotonic())[0], "it is still open"


@pytest.mark.parametrize(
    "lengths_and_body",
    [
        "Content-Length: -5\r\n\r\nhello",
        "Content-Length: +5\r\n\r\nhello",
        "Content-Length: five\r\n\r\nhello",
        "Content-Length: \r\n\r\nhello",
        "Content-Length: 99999999999999999999999\r\n\r\nhello",
        "Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
        "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        "Transfer-Encoding: identity\r\n\r\nhello",
        "Transfer-Encoding: chunked\r\n\r\nxyz\r\nhello\r\n0\r\n\r\n",
        "Transfer-Encoding: chunked\r\n\r\n-5\r\nhello\r\n0\r\n\r\n",
        "Transfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\nhello\r\n0\r\n\r\n",
        "Transfer-Encoding: chunked\r\n\r\n3\r\nhello\r\n0\r\n\r\n",
        "Content-Length: 5\r\n\r\nhello, and more than was said",
    ],
)
def test_a_wrong_length_is_refused_and_the_connection_closed(target: Victim, lengths_and_body: str) -> None:
    with target.connect() as connection:
        connection.sendall((HEAD + lengths_and_body).encode())
        assert answer_to(connection)[0] == 400


@pytest.mark.parametrize("head", ["Content-Length: 500", "Transfer-Encoding: chunked"])
def test_a_body_shorter_than_was_said_ends_with_its_connection(target: Victim, head: str) -> None:
    for _ in range(50):
        with target.connect() as connection:
            connection.sendall(f"{HEAD}{head}\r\n\r\n1f4\r\nhalf".encode())
    with target.connect() as connection:  # a client that only closes its sending side
        connection.sendall(f"{HEAD}{head}\r\n\r\n1f4\r\nhalf".encode())
        connection.shutdown(socket.SHUT_WR)
        connection.settimeout(TIMEOUT_S + 5)
        assert connection.recv(65536)[:12] in {b"", b"HTTP/1.1 400", b"HTTP/1.1 504"}


# Forms


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        *((FORM["content-type"], (PART + DIGIT + b"\r\n--x--\r\n")[:cut]) for cut in (1, 20, 70, 76, 200, -9, -5)),
        ("multipart/form-data", PART + DIGIT),
        (FORM["content-type"], PART.replace(b"image", b"other") * 10_000 + b"--x--"),
        (FORM["content-type"], b"\r\n".join([PART + DIGIT] * 10_000) + b"\r\n--x--"),
        (FORM["content-type"], b"--x\r\nX: " + MEBIBYTE + b"\r\n" + PART[5:] + DIGIT + b"\r\n--x--"),
        (FORM["content-type"], b"--x\r\n" + b"X: y\r\n" * 100_000 + PART[5:] + DIGIT + b"\r\n--x--"),
        (FORM["content-type"], b"--x\r\n" + MEBIBYTE),
        ("multipart/form-data; boundary=" + "b" * 10_000, b"--" + b"b" * 9_999),
    ],
    ids=lambda value: f"{len(value)} bytes {value[:20]!r}",
)
def test_a_form_that_is_cut_or_flooded_is_refused(target: Victim, kind: str, body: bytes) -> None:
    response = target.client.post("/classify?model=lenet5", content=body, headers={"content-type": kind})
    assert problem(response)[1] in {"broken_multipart", "empty_image", "broken_image", "too_many_images"}


NO_PICTURE = {(415, "unsupported_format"), (504, "timeout")}


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"\r\n-", NO_PICTURE),
        (b"\r\n--", NO_PICTURE),
        (b"\r", NO_PICTURE),
        (b"\r\n--x-", {(400, "broken_multipart")}),
    ],
)
def test_a_form_of_near_boundaries_blocks_nobody(target: Victim, data: bytes, expected: set[tuple[int, str]]) -> None:
    body = PART + data * (10_000_000 // len(data)) + b"\r\n--x--\r\n"
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(target.client.post, "/classify?model=lenet5", content=body, headers=FORM)
        waits = [target.seconds_of_a_good_request()]
        while not answer.done():
            waits.append(target.seconds_of_a_good_request())
    assert problem(answer.result()) in expected
    assert max(waits) < SOON_S


# Names and numbers

NAMES = ["../../etc/passwd", "%2e%2e%2f", "a\0b", "x" * 10_000, "модель", "\U0001f600", "\u202e5tenel", "@", ":"]
NAMES += ["lenet5:../../x", "lenet5@\0", "lenet5@../mnist5k", "LENET5", " lenet5", "lenet5\x1b[2J", "none"]
REFUSED = {(404, "unknown_model"), (404, "not_found"), (422, "invalid_parameter")}


@pytest.mark.parametrize("name", NAMES, ids=lambda name: ascii(name[:20]))
def test_a_name_is_no_path(target: Victim, name: str) -> None:
    for route in ("/models/{}", "/models/{}/complexity", "/models/{}/latency"):
        path = route.format(quote(name, safe="")).encode()
        url = target.client.base_url.copy_with(raw_path=path)  # raw, since httpx would normalise it
        assert problem(target.client.get(url)) in REFUSED
    assert problem(classify(target.client, DIGIT, model=name)) in REFUSED
    assert problem(compare(target.client, name)) in REFUSED
    assert compare(target.client, f"lenet5,{name}").status_code in {200, 422}


def compare(client: httpx.Client, models: str, **parameters: str) -> httpx.Response:
    return client.post("/compare", params={"models": models, **parameters}, content=DIGIT)


@pytest.mark.parametrize("path", ["/models/../../etc/passwd", "/static-offline-docs/../service/app.py", "//etc/passwd"])
def test_no_path_leads_to_a_file(target: Victim, path: str) -> None:
    for form in (path, path.replace("..", "%2e%2e"), path.replace("../", "%2e%2e%2f"), path.replace("../", "..%5c")):
        with target.connect() as connection:  # a socket, since httpx would normalise the path
            connection.sendall(f"GET {form} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
            assert answer_to(connection)[0] == 404


@pytest.mark.parametrize(
    "models",
    [
        ",".join(f"m{number}" for number in range(3000)),
        ",".join(["lenet5"] * 1000),
        ",".join(f"m{number}" for number in range(17)),
        "," * 1999,
        "lenet5,,",
        "",
    ],
    ids=lambda models: f"{len(models)} characters",
)
def test_too_many_or_empty_names_to_compare_are_refused(target: Victim, models: str) -> None:
    assert problem(compare(target.client, models)) in REFUSED


def test_a_model_named_many_times_is_asked_once(target: Victim) -> None:
    assert len(compare(target.client, ",".join(["lenet5"] * 250)).json()["models"]) == 1


@pytest.mark.parametrize(
    ("parameter", "value"),
    [
        *(("top_k", value) for value in ("-1", "0", "1001", "1e3", "2.5", "nan", "inf", "0x5", "", "9" * 5000)),
        *(("deadline_ms", value) for value in ("nan", "-inf", "-1", "0", "-0.0", "", "1ms")),
        ("deadline_ms", "1e-300"),
        *(("max_latency_ms", value) for value in ("nan", "-inf", "-1", "0", "1e-300")),
        *(("min_accuracy", value) for value in ("nan", "inf", "-inf", "-0.1", "1.0000001", "1")),
    ],
)
def test_a_number_out_of_range_is_refused(target: Victim, parameter: str, value: str) -> None:
    model = "auto" if parameter in {"max_latency_ms", "min_accuracy"} else "lenet5"
    codes = {"invalid_parameter", "no_choice", "impossible_deadline"}
    status, code = problem(classify(target.client, DIGIT, model=model, **{parameter: value}))
    assert status == 422
    assert code in codes
    if model == "lenet5":
        assert problem(compare(target.client, model, **{parameter: value})) == (status, code)


@pytest.mark.parametrize("value", ["inf", "1e308", "1e400"])
def test_there_may_be_all_the_time_in_the_world(target: Victim, value: str) -> None:
    assert classify(target.client, DIGIT, deadline_ms=value).status_code == 200
    assert classify(target.client, DIGIT, model="auto", max_latency_ms=value).status_code == 200
    assert compare(target.client, "lenet5", deadline_ms=value).status_code == 200


# Contents that name URLs, files or code


def test_nothing_is_fetched_opened_or_run(target: Victim) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/cat.png"
        # contacts the listener if it is unpickled
        pickled = b"csocket\ncreate_connection\n((S'127.0.0.1'\nI%d\ntptR." % listener.getsockname()[1]
        svg = f'<svg xmlns="http://www.w3.org/2000/svg"><image href="{url}"/></svg>'.encode()
        for body in (url.encode(), pickled, svg, f"file://{__file__}".encode(), b"\x80\x04\x95" + pickled):
            assert problem(classify(target.client, body)) == (415, "unsupported_format")
            form = target.client.post("/classify?model=lenet5", files={"image": ("a.png", body)})
            assert problem(form) == (415, "unsupported_format")
            pickle = {"content-type": "application/vnd.bentoml+pickle"}
            response = target.client.post("/classify?model=lenet5", content=body, headers=pickle)
            assert problem(response)[0] == 415
        for data in ({"image": url}, {"image": "docs/digit.png"}, {"url": url}):
            assert problem(target.client.post("/classify?model=lenet5", data=data))[0] in {400, 415}
            files: dict[str, tuple[None, str]] = {name: (None, value) for name, value in data.items()}
            assert problem(target.client.post("/classify?model=lenet5", files=files))[0] in {400, 415}
        for forwarded in ({"X-Forwarded-Host": "127.0.0.1"}, {"Referer": url}, {"Content-Location": url}):
            response = target.client.post("/classify?model=lenet5", content=DIGIT, headers=forwarded)
            assert response.status_code == 200
        assert problem(classify(target.client, DIGIT, model=url)) == (404, "unknown_model")
        assert not select.select([listener], [], [], 0.3)[0], "the server contacted it"


@pytest.mark.parametrize("name", ["../../../tmp/hostile.png", "/etc/passwd", "a\0.png", "x" * 5000, "%2e%2e%2f", ""])
def test_a_files_name_is_only_a_name(target: Victim, name: str) -> None:
    response = target.client.post("/classify?model=lenet5", files={"image": (name, DIGIT, "image/png")})
    if response.status_code != 200:
        assert problem(response) in {(400, "broken_multipart"), (400, "empty_image")}


# Floods

FLOODS = {
    "a header's value": (HEAD.encode() + b"X-A: ", b"x" * 65536),
    "a header's name": (HEAD.encode(), b"x" * 65536),
    "an address": (b"GET /", b"x" * 65536),
    "headers": (HEAD.encode(), b"X-A: y\r\n" * 8192),
    "trailers": (HEAD.encode() + b"Transfer-Encoding: chunked\r\n\r\n0\r\n", b"X-A: y\r\n" * 8192),
    "a chunk's extension": (HEAD.encode() + b"Transfer-Encoding: chunked\r\n\r\n5;", b"x" * 65536),
    "chunks of a byte": (HEAD.encode() + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n" * 10_000),
    "empty lines": (b"", b"\r\n" * 32768),
    "requests, no answer of which is read": (b"", b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n" * 2048),
}


@pytest.mark.parametrize("flood", FLOODS)
def test_a_flood_takes_no_memory(target: Victim, flood: str) -> None:
    head, chunk = FLOODS[flood]
    before, waits = target.memory_mb(), []
    with target.connect() as connection:
        connection.settimeout(3)  # a server that stops reading is as good as one that closes
        try:
            connection.sendall(head)
            for number in range(0x4000000 // len(chunk)):
                connection.sendall(chunk)
                if number % 16 == 0:
                    assert target.memory_mb() - before < MAX_GROWTH_MB, f"after {number * len(chunk):,} bytes"
                    waits.append(target.seconds_of_a_good_request())
        except OSError:
            pass
        assert target.memory_mb() - before < MAX_GROWTH_MB
        waits.append(target.seconds_of_a_good_request())
    assert max(waits) < 2


@pytest.mark.parametrize("headers", [b"X-A: " + b"x" * 10_000_000 + b"\r\n", b"X-A: y\r\n" * 10_000])
def test_a_head_of_too_much_is_refused(target: Victim, headers: bytes) -> None:
    with target.connect() as connection:
        answer = b""
        try:
            connection.sendall(HEAD.encode() + headers + b"Content-Length: 0\r\nConnection: close\r\n\r\n")
            answer = connection.recv(12)
        except OSError:  # the server closed before everything was sent
            pass
        assert answer in {b"", b"HTTP/1.1 400", b"HTTP/1.1 431"}


# Clients that go away


def queue_depth(client: httpx.Client) -> float:
    return sum(map(float, re.findall(r"^convserve_queue_depth\{.*\} (.*)$", client.get("/metrics").text, re.MULTILINE)))


def test_clients_that_go_away_leave_the_queue(lenet5: PublishedModel) -> None:
    body = encoded(Image.new("RGB", (8000, 6000)), "PNG")
    request = f"{HEAD}Content-Length: {len(body)}\r\n\r\n".encode() + body
    with serving(CONVSERVE_RUNTIME="null", CONVSERVE_TIMEOUT_S="120") as (client, pid):
        target = Victim(client, pid)
        connections = [target.connect() for _ in range(100)]  # half a second each, two at a time
        for connection in connections:
            connection.sendall(request)
        deadline = time.monotonic() + 10
        while queue_depth(client) < 30:  # of one front
            assert time.monotonic() < deadline
        for connection in connections:
            connection.close()
        deadline = time.monotonic() + 5
        while queue_depth(client):
            assert time.monotonic() < deadline
        assert target.seconds_of_a_good_request() < SOON_S
