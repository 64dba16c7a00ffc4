"""Tests of a real server over a real socket, used as its users use it."""

from __future__ import annotations

import io
import json
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest
from PIL import Image

from engines.published.store import PublishedModel
from engines.runtimes.registry import EngineSpec, open_engine
from models.zoo import ZOO
from tests.service.test_images import encoded
from tests.serving import ROOT, serving
from training.data import DataSet

DIGIT = (ROOT / "docs" / "digit.png").read_bytes()


def classify(client: httpx.Client, body: bytes, **parameters: str | int) -> httpx.Response:
    return client.post("/classify", params={"model": "lenet5", **parameters}, content=body)


def test_all_held_out_digits_get_the_engines_own_answers(
    server: httpx.Client, lenet5: PublishedModel, digits: DataSet
) -> None:
    bodies = [encoded(digits.held_out.pictures[index], "PNG") for index in range(1000)]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda body: classify(server, body, top_k=10), bodies))
    assert {answer.status_code for answer in answers} == {200}
    probabilities = np.zeros((1000, 10))
    for row, answer in zip(probabilities, answers, strict=True):
        for prediction in answer.json()["predictions"]:
            row[prediction["index"]] = prediction["probability"]
    engine = open_engine(lenet5, EngineSpec("openvino", "fp32"))
    logits = engine.infer(digits.held_out.pixels(lenet5.manifest.preprocess)).astype(float)
    expected = np.exp(logits - logits.max(1, keepdims=True))
    expected /= expected.sum(1, keepdims=True)
    assert np.abs(probabilities - expected).max() < 1e-3
    assert (probabilities.argmax(1) == expected.argmax(1)).all()
    top1 = (probabilities.argmax(1) == digits.held_out.targets).mean()
    assert top1 == lenet5.manifest.accuracy["fp32"].top1


def test_an_answer_names_its_model_and_times(server: httpx.Client, lenet5: PublishedModel) -> None:
    response = classify(server, DIGIT, top_k=3)
    answer = response.json()
    assert (answer["model"], answer["runtime"], answer["precision"]) == (lenet5.manifest.tag, "openvino", "fp32")
    assert answer["predictions"][0]["label"] == "7"
    assert len(answer["predictions"]) == 3
    assert answer["batch_size"] == 1
    assert answer["timing_ms"].keys() == {"decode", "queue", "inference"}
    assert answer["timing_ms"]["inference"] % 1  # uvloop's clock counts whole milliseconds
    assert response.headers["server-timing"].startswith("decode;dur=")


@pytest.mark.parametrize("name", ["lenet5", "lenet5@mnist5k", "TAG"])
def test_a_model_has_three_names(server: httpx.Client, lenet5: PublishedModel, name: str) -> None:
    response = classify(server, DIGIT, model=name.replace("TAG", lenet5.manifest.tag))
    assert response.json()["model"] == lenet5.manifest.tag


def pictures() -> Iterator[tuple[str, bytes]]:
    grey = Image.open(io.BytesIO(DIGIT))
    sixteen = Image.fromarray(np.asarray(grey, np.uint16) * 257)
    alpha = Image.merge("LA", (Image.new("L", grey.size, 255), grey))  # white ink, transparent where there is none
    yield "greyscale PNG", DIGIT
    yield "RGB PNG", encoded(grey.convert("RGB"), "PNG")
    yield "palette PNG", encoded(grey.convert("P"), "PNG")
    yield "16-bit PNG", encoded(sixteen, "PNG")
    yield "PNG with alpha", encoded(alpha, "PNG")
    yield "RGBA PNG", encoded(alpha.convert("RGBA"), "PNG")
    yield "greyscale JPEG", encoded(grey, "JPEG", quality=95)
    yield "RGB JPEG", encoded(grey.convert("RGB"), "JPEG", quality=95)
    yield "CMYK JPEG", encoded(grey.convert("RGB").convert("CMYK"), "JPEG", quality=95)
    yield "larger JPEG", encoded(grey.resize((280, 280)), "JPEG")


@pytest.mark.parametrize(("kind", "body"), list(pictures()), ids=lambda value: value if isinstance(value, str) else "")
def test_a_seven_is_a_seven_in_every_format(server: httpx.Client, kind: str, body: bytes) -> None:
    assert classify(server, body).json()["predictions"][0]["label"] == "7"


def test_an_image_may_come_as_a_multipart_part(server: httpx.Client) -> None:
    response = server.post("/classify?model=lenet5", files={"image": ("seven.png", DIGIT, "image/png")})
    assert response.json()["predictions"][0]["label"] == "7"


TOO_LONG = b"\0" * (11 * 1024 * 1024)


@pytest.mark.parametrize(
    ("body", "parameters", "status", "code"),
    [
        (b"", {}, 400, "empty_image"),
        (b"a text", {}, 415, "unsupported_format"),
        (encoded(Image.effect_noise((64, 64), 90), "JPEG")[:900], {}, 400, "broken_image"),
        (DIGIT, {"model": "lenet"}, 404, "unknown_model"),
        (DIGIT, {"model": "../../etc/passwd"}, 404, "unknown_model"),
        (DIGIT, {"model": "lenet5:mnist5k-00000000"}, 404, "unknown_model"),
        (DIGIT, {"model": "lenet5@imagenet"}, 404, "unknown_model"),
        (DIGIT, {"model": "senet154"}, 409, "no_weights"),
        (DIGIT, {"model": "x" * 300}, 422, "invalid_parameter"),
        (DIGIT, {"top_k": 0}, 422, "invalid_parameter"),
        (DIGIT, {"top_k": "abc"}, 422, "invalid_parameter"),
        (TOO_LONG, {}, 413, "body_too_large"),
    ],
)
def test_bad_input_is_a_problem(
    server: httpx.Client, body: bytes, parameters: dict[str, str | int], status: int, code: str
) -> None:
    response = classify(server, body, **parameters)
    assert response.headers["content-type"] == "application/problem+json"
    problem = response.json()
    assert (response.status_code, problem["status"], problem["code"]) == (status, status, code)
    assert problem["detail"]


def test_an_unknown_model_gets_near_names(server: httpx.Client) -> None:
    assert classify(server, DIGIT, model="lenet").json()["near"][0] == "lenet5"
    assert "resnet20_cifar" in classify(server, DIGIT, model="resnet20_cifr").json()["near"]


def test_missing_weights_come_with_the_command_that_makes_them(server: httpx.Client) -> None:
    assert classify(server, DIGIT, model="senet154").json()["command"] == (
        "python -m training import senet154 && python -m training publish checkpoints/senet154-imagenet"
    )


def test_an_image_may_stand_among_other_parts(server: httpx.Client) -> None:
    files = {"image": ("seven.png", DIGIT, "image/png")}
    assert (
        server.post("/classify?model=lenet5", data={"text": "x", "note": "y"}, files=files).json()["predictions"][0][
            "label"
        ]
        == "7"
    )


@pytest.mark.parametrize("part", [("text", (None, "x")), ("other", ("a.png", DIGIT)), ("image", (None, ""))])
def test_a_form_without_the_image_is_a_problem(server: httpx.Client, part: tuple[str, tuple[str | None, str]]) -> None:
    response = server.post("/classify?model=lenet5", files=[part])
    assert (response.status_code, response.json()["code"]) == (400, "empty_image")


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("Multipart/Form-Data; boundary=x", b"--y\r\nnonsense"),
        ("multipart/form-data", b"--y"),
        (
            "multipart/form-data; boundary=x; charset=undefined",
            b'--x\r\ncontent-disposition: form-data; name="\xff"\r\n\r\n1\r\n--x--\r\n',
        ),
        (
            "multipart/form-data; boundary=x; charset=punycode",
            b'--x\r\ncontent-disposition: form-data; name="t-"\r\n\r\n' + b"a-" * 400_000 + b"\r\n--x--\r\n",
        ),
        (
            "multipart/form-data; boundary=x; charset=nosuch",
            b'--x\r\ncontent-disposition: form-data; name="\xff"\r\n\r\n1\r\n--x--\r\n',
        ),
    ],
)
def test_a_broken_form_is_a_problem(server: httpx.Client, kind: str, body: bytes) -> None:
    response = server.post("/classify?model=lenet5", content=body, headers={"content-type": kind})
    assert response.status_code == 400
    assert response.json()["code"] in ("broken_multipart", "empty_image")


def test_a_model_must_be_named(server: httpx.Client) -> None:
    response = server.post("/classify", content=DIGIT)
    assert (response.status_code, response.json()["detail"]) == (422, "model: Field required")


HEAD = "POST /classify?model=lenet5 HTTP/1.1\r\nHost: x\r\n"
MEBIBYTE = b"x" * 0x100000


def connect(server: httpx.Client, head: str) -> socket.socket:
    connection = socket.create_connection((server.base_url.host, server.base_url.port or 80), timeout=10)
    connection.sendall(f"{HEAD}{head}\r\n\r\n".encode())
    return connection


def sent_until_closed(connection: socket.socket, chunk: bytes, chunks: int) -> int:
    """Return the number of chunks that could be sent before the server closed the connection."""
    for number in range(chunks):
        try:
            connection.sendall(chunk)
        except OSError:
            return number
    return chunks


def test_a_declared_length_over_the_limit_is_refused_before_a_byte_of_it(server: httpx.Client) -> None:
    with connect(server, "Content-Length: 200000000") as connection:
        assert connection.recv(65536).startswith(b"HTTP/1.1 413")
        assert sent_until_closed(connection, MEBIBYTE, 190) <= 20


def test_an_undeclared_length_is_refused_once_it_passes_the_limit(server: httpx.Client) -> None:
    with connect(server, "Transfer-Encoding: chunked") as connection:
        assert sent_until_closed(connection, b"100000\r\n" + MEBIBYTE + b"\r\n", 190) <= 40


def test_a_client_that_goes_away_is_counted_and_harms_nobody(server: httpx.Client) -> None:
    with connect(server, "Content-Length: 1000") as connection:
        connection.sendall(b"half")
    deadline = time.monotonic() + 10
    while 'outcome="disconnected"' not in server.get("/metrics").text:
        assert time.monotonic() < deadline
    assert classify(server, DIGIT).status_code == 200


def test_the_catalogue(server: httpx.Client, lenet5: PublishedModel) -> None:
    catalogue = {model["name"]: model for model in server.get("/models").json()}
    assert list(catalogue) == list(ZOO)
    resnet50 = catalogue["resnet50"]
    assert (resnet50["family"], resnet50["year"], resnet50["macs"]) == ("resnet", 2015, 4_089_184_256)
    assert resnet50["published"][0]["top1"] == 76.13
    assert catalogue["senet154"]["models"] == []
    (model,) = catalogue["lenet5"]["models"]
    assert (model["tag"], model["status"]) == (lenet5.manifest.tag, "ready")
    assert model["accuracy"]["fp32"]["images"] == 1000
    detail = server.get("/models/lenet5").json()
    assert detail["paper"]["year"] == 1998
    assert detail["models"] == [model]


@pytest.mark.parametrize(
    ("name", "totals"),
    [("lenet5", (60_000, 325_680, 6_508)), ("senet154", (115_088_984, 20_688_363_520, 38_687_384))],
)
def test_complexity_is_exact_published_or_not(server: httpx.Client, name: str, totals: tuple[int, ...]) -> None:
    paper = server.get(f"/models/{name}/complexity").json()["paper"]
    assert (paper["params"], paper["macs"], paper["activations"]) == totals
    for key in ("params", "macs", "activations"):
        assert sum(layer[key] for layer in paper["layers"]) == paper[key]


def test_latency_counts_what_was_asked(server: httpx.Client, lenet5: PublishedModel) -> None:
    classify(server, DIGIT)
    latency = server.get("/models/lenet5/latency").json()["models"][lenet5.manifest.tag]
    assert 1 <= latency["requests"] <= 1000
    for percentiles in latency["stages_ms"].values():
        assert 0 <= percentiles["p50"] <= percentiles["p90"] <= percentiles["p99"]


def test_health_metrics_and_documentation(server: httpx.Client, lenet5: PublishedModel) -> None:
    assert server.get("/livez").status_code == server.get("/readyz").status_code == 200
    classify(server, DIGIT)
    classify(server, b"")
    metrics = server.get("/metrics").text
    tag = lenet5.manifest.tag
    assert f'convserve_images_total{{model="{tag}",outcome="ok"}}' in metrics
    assert f'convserve_images_total{{model="{tag}",outcome="empty_image"}}' in metrics
    page = server.get("/docs").text
    assert "//cdn" not in page
    assert server.get("/static-offline-docs/swagger-ui-bundle.js").status_code == 200
    paths = server.get("/openapi.json").json()["paths"]
    assert "image/png" in paths["/classify"]["post"]["requestBody"]["content"]


def test_random_paths_leave_no_trace_in_the_metrics(server: httpx.Client) -> None:
    for number in range(20):
        response = server.get(f"/nosuch{number}")
        assert (response.status_code, response.json()["code"]) == (404, "not_found")
        classify(server, DIGIT, model=f"nosuch{number}")
    metrics = server.get("/metrics").text
    assert "nosuch" not in metrics
    assert 'convserve_images_total{model="",outcome="unknown_model"}' in metrics


def test_a_wrong_method_is_a_problem(server: httpx.Client) -> None:
    response = server.get("/classify?model=lenet5")
    assert (response.status_code, response.json()["code"]) == (405, "method_not_allowed")


def test_a_process_that_serves_has_no_torch(server_and_pid: tuple[httpx.Client, int]) -> None:
    client, pid = server_and_pid
    assert classify(client, DIGIT).status_code == 200
    workers = psutil.Process(pid).children(recursive=True)
    mapped = {mapping.path for worker in workers for mapping in worker.memory_maps()}
    assert any("openvino" in path for path in mapped)
    assert not any("torch" in path for path in mapped)


@pytest.mark.slow  # as test_hostile's slow bodies, with another time limit
def test_a_slow_client_gets_a_timeout(lenet5: PublishedModel) -> None:
    with (
        serving(CONVSERVE_TIMEOUT_S="0.3", CONVSERVE_RUNTIME="null") as (client, _),
        connect(client, "Content-Length: 1000") as connection,
    ):
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
        assert answer.startswith(b"HTTP/1.1 504")
        assert b'"code":"timeout"' in answer


def test_a_wrong_setting_is_named() -> None:
    wrong = serving(CONVSERVE_MAX_BATCH="0")
    with pytest.raises(RuntimeError, match="error: CONVSERVE_MAX_BATCH: Input should be greater"), wrong:
        pass


ORIGIN = {"Origin": "https://example.com"}


@pytest.fixture(scope="module")
def null_server(lenet5: PublishedModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """Yield a client of a server of the null engine, which loads on first use and allows an origin to read answers."""
    cors = {"enabled": True, "access_control_allow_origins": [ORIGIN["Origin"]]}
    config = tmp_path_factory.mktemp("config") / "bentoml.yaml"
    config.write_text(json.dumps({"services": {"convserve": {"http": {"cors": cors}}}}))
    with serving(BENTOML_CONFIG=str(config), CONVSERVE_RUNTIME="null", CONVSERVE_LOAD="first_use") as (client, _):
        yield client


def test_pages_of_other_origins_read_answers_if_bentoml_is_told_so(
    server: httpx.Client, null_server: httpx.Client
) -> None:
    allowed = "access-control-allow-origin"
    assert allowed not in server.get("/models/lenet5", headers=ORIGIN).headers
    assert null_server.get("/models/lenet5", headers=ORIGIN).headers[allowed] == ORIGIN["Origin"]


def test_the_null_engine_serves_too_and_loads_on_first_use(null_server: httpx.Client) -> None:
    (before,) = null_server.get("/models/lenet5").json()["models"]
    assert (before["status"], before["runtime"]) == ("published", None)
    answer = classify(null_server, DIGIT).json()
    assert (answer["runtime"], answer["predictions"][0]["probability"]) == ("null", pytest.approx(0.1))
    (after,) = null_server.get("/models/lenet5").json()["models"]
    assert (after["status"], after["runtime"]) == ("ready", "null")


def test_a_model_that_fails_to_load_is_reported_and_stops_no_other(lenet5: PublishedModel, tmp_path: Path) -> None:
    good = tmp_path / "models" / "lenet5" / lenet5.folder.name
    good.mkdir(parents=True)
    for path in lenet5.folder.iterdir():
        (good / path.name).write_bytes(path.read_bytes())
    bad = tmp_path / "models" / "lenet5" / "mnist5k-deadbeef"
    bad.mkdir()
    for path in lenet5.folder.iterdir():
        (bad / path.name).write_bytes(path.read_bytes())
    manifest = json.loads((bad / "manifest.json").read_text())
    digest = manifest["files"]["checkpoint.safetensors"]["sha256"]
    manifest["files"]["checkpoint.safetensors"]["sha256"] = "deadbeef" + digest[8:]
    (bad / "manifest.json").write_text(json.dumps(manifest))
    with serving(BENTOML_HOME=str(tmp_path)) as (client, _):
        statuses = {model["tag"]: model for model in client.get("/models/lenet5").json()["models"]}
        assert statuses[lenet5.manifest.tag]["status"] == "ready"
        broken = statuses["lenet5:mnist5k-deadbeef"]
        assert broken["status"] == "failed"
        assert "checkpoint.safetensors is not the file that was published" in broken["error"]
        response = classify(client, DIGIT, model="lenet5:mnist5k-deadbeef")
        assert (response.status_code, response.json()["code"]) == (503, "not_loadable")
        assert classify(client, DIGIT, model=lenet5.manifest.tag).status_code == 200
