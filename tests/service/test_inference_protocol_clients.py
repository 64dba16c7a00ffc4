"""Tests of the Open Inference Protocol with the clients that people use: Triton's, curl, and this project's page."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest

from engines.published.store import PublishedModel
from service.context import ServerContext
from tests.service.stubs import client_of
from tests.service.test_images import encoded
from tests.service.test_inference_protocol import DIGIT, SHAPE
from tests.service.test_inference_protocol_grpc import ADDRESS, channel_to
from tests.serving import ROOT, free_port, serving
from training.data import DataSet

PAGE = (ROOT / "docs" / "inference_protocol.md").read_text()


def tritonclient(name: str) -> Any:
    """Return a module of Triton's client, whose generated code warns of a newer protobuf; skip the test without it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip(f"tritonclient.{name}", reason="tritonclient is not installed")


def image_input(library: Any, files: list[bytes], **options: Any) -> Any:
    """Return the input `image` with these files."""
    array = np.array(files, dtype=object)
    image = library.InferInput("image", array.shape, "BYTES")
    return image.set_data_from_numpy(array, **options)


def probabilities_of(server: httpx.Client, body: bytes) -> list[float]:
    """Return the probability of each class that /classify answers."""
    answer = server.post("/classify", params={"model": "lenet5", "top_k": 10}, content=body).json()
    return [row["probability"] for row in sorted(answer["predictions"], key=lambda row: row["index"])]


def files_of(digits: DataSet, count: int) -> list[bytes]:
    """Return some held-out digits as PNG files."""
    return [encoded(digits.held_out.pictures[place], "PNG") for place in range(count)]


def test_tritons_client_gets_the_answers_of_classify(
    server: httpx.Client, lenet5: PublishedModel, digits: DataSet
) -> None:
    library = tritonclient("http")
    files = files_of(digits, 32)
    with library.InferenceServerClient(server.base_url.netloc.decode()) as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("lenet5")
        assert not client.is_model_ready("senet154")
        assert client.get_server_metadata()["name"] == "convserve"
        about = client.get_model_metadata("lenet5", lenet5.manifest.tag.partition(":")[2])
        assert [tensor["name"] for tensor in about["inputs"]] == ["pixels", "image"]
        assert client.get_model_config("lenet5")["max_batch_size"] == 64
        answer = client.infer("lenet5", [image_input(library, files)], request_id="7")
        assert answer.get_response()["id"] == "7"
        assert answer.as_numpy("logits").shape == (32, 10)
        expected = [probabilities_of(server, file) for file in files]
        assert np.abs(answer.as_numpy("probabilities") - expected).max() < 1e-4
        pixels = digits.held_out.pixels(lenet5.manifest.preprocess)[:32]
        tensor = library.InferInput("pixels", pixels.shape, "UINT8")
        wanted = [library.InferRequestedOutput("probabilities", binary_data=False)]
        for binary in (True, False):
            tensor.set_data_from_numpy(pixels, binary_data=binary)
            answer = client.infer("lenet5", [tensor], outputs=wanted)
            assert np.abs(answer.as_numpy("probabilities") - expected).max() < 1e-4
        wanted = [library.InferRequestedOutput("logits", class_count=1)]
        answer = client.infer("lenet5", [image_input(library, [DIGIT])], outputs=wanted, timeout=5_000_000, priority=1)
        assert answer.as_numpy("logits").shape == (1, 1)
        assert answer.as_numpy("logits")[0, 0].endswith(b":7:7")
        waiting = [client.async_infer("lenet5", [image_input(library, [DIGIT])]) for _ in range(4)]
        assert {request.get_result().as_numpy("logits").argmax() for request in waiting} == {7}
        (stats,) = client.get_inference_statistics("lenet5")["model_stats"]
        assert stats["inference_stats"]["success"]["count"] >= 32 * 4
        assert {entry["state"] for entry in client.get_model_repository_index()} == {"READY"}


@pytest.mark.parametrize(
    ("name", "shape", "datatype", "said"),
    [
        ("pixels", [1, 28, 28, 1], "UINT8", "the model takes [n, 32, 32, 1]"),
        ("pixels", [1, 32, 32, 1], "FP32", "the datatype is 'FP32'; send UINT8"),
        ("input", [1, 32, 32, 1], "UINT8", "there is no 'input'"),
        ("pixels", [65, 32, 32, 1], "UINT8", "a request may have at most 64 images"),
    ],
)
def test_tritons_client_is_told_what_is_wrong(
    server: httpx.Client, name: str, shape: list[int], datatype: str, said: str
) -> None:
    library = tritonclient("http")
    tensor = library.InferInput(name, shape, datatype)
    tensor.set_data_from_numpy(np.zeros(shape, np.float32 if datatype == "FP32" else np.uint8))
    with library.InferenceServerClient(server.base_url.netloc.decode()) as client:
        with pytest.raises(tritonclient("utils").InferenceServerException, match=re.escape(said)) as error:
            client.infer("lenet5", [tensor])
        assert error.value.status() in {"400", "413"}


def test_tritons_client_is_refused_shared_memory_and_unknown_models(server: httpx.Client) -> None:
    library, failure = tritonclient("http"), tritonclient("utils").InferenceServerException
    with library.InferenceServerClient(server.base_url.netloc.decode()) as client:
        with pytest.raises(failure, match="shared memory is not supported"):
            client.register_system_shared_memory("region", "/region", 64)
        tensor = library.InferInput("pixels", [1, *SHAPE], "UINT8")
        tensor.set_shared_memory("region", 1024)
        with pytest.raises(failure, match="pixels: shared memory is not supported; send tensors in the request"):
            client.infer("lenet5", [tensor])
        with pytest.raises(failure, match="did you mean lenet5"):
            client.get_model_metadata("lenet")
        with pytest.raises(failure, match="CONVSERVE_ADMIN_TOKEN"):
            client.unload_model("lenet5")
        broken = image_input(library, [DIGIT, DIGIT[:100], DIGIT])
        with pytest.raises(failure, match=r"image\[1\]: the image cannot be decoded"):
            client.infer("lenet5", [broken])
        assert client.infer("lenet5", [image_input(library, [DIGIT])]).as_numpy("logits").argmax() == 7


def test_tritons_asynchronous_client_is_answered(server: httpx.Client) -> None:
    library = tritonclient("http.aio")

    async def ask() -> Any:
        async with library.InferenceServerClient(server.base_url.netloc.decode()) as client:
            assert await client.is_server_ready()
            requests = [client.infer("lenet5", [image_input(library, [DIGIT] * 2)]) for _ in range(8)]
            return await asyncio.gather(*requests)

    assert {tuple(answer.as_numpy("logits").argmax(1)) for answer in asyncio.run(ask())} == {(7, 7)}


@pytest.mark.anyio
async def test_tritons_clients_of_grpc_are_answered(stub_server: ServerContext, three: list[str]) -> None:
    library, failure = tritonclient("grpc"), tritonclient("utils").InferenceServerException
    asynchronous = tritonclient("grpc.aio")
    name, _, version = three[0].partition(":")

    def use(address: str) -> None:
        with library.InferenceServerClient(address) as client:
            assert client.is_server_live()
            assert client.is_model_ready(name, version)
            assert [tensor.name for tensor in client.get_model_metadata(name, version).inputs] == ["pixels", "image"]
            assert client.get_model_config(name, version).config.max_batch_size == 64
            image = image_input(library, [DIGIT] * 3)
            answer = client.infer(name, [image], version, request_id="7", timeout=5_000_000, client_timeout=5)
            assert answer.get_response().id == "7"
            assert answer.as_numpy("logits").tolist() == [[1, *[0] * 9]] * 3
            wanted = [library.InferRequestedOutput("probabilities", class_count=2)]
            answer = client.infer(name, [image], version, outputs=wanted)
            assert answer.as_numpy("probabilities").shape == (3, 2)
            pixels = library.InferInput("pixels", [1, *SHAPE], "UINT8").set_data_from_numpy(
                np.zeros([1, *SHAPE], np.uint8)
            )
            assert client.infer(name, [pixels], version).as_numpy("logits").shape == (1, 10)
            stats = client.get_inference_statistics(name, version).model_stats[0]
            assert stats.inference_stats.success.count == 7
            with pytest.raises(failure, match="did you mean lenet5"):
                client.get_model_metadata("lenet")
            with pytest.raises(failure, match="shared memory is not supported"):
                client.register_system_shared_memory("region", "/region", 64)

    async with channel_to(stub_server) as (_, served):
        address = f"{ADDRESS}:{served.port}"
        await asyncio.to_thread(use, address)
        async with asynchronous.InferenceServerClient(address) as client:
            requests = [client.infer(name, [image_input(library, [DIGIT])], version) for _ in range(4)]
            answers = await asyncio.gather(*requests)
        assert [answer.as_numpy("logits").argmax() for answer in answers] == [0] * 4
    async with client_of(stub_server) as http:
        assert 'method="gRPC"' in (await http.get("/metrics")).text


def blocks(language: str) -> list[str]:
    """Return the page's code in a language."""
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def test_the_pages_commands_work(server: httpx.Client) -> None:
    if not shutil.which("curl"):
        pytest.skip("curl is not installed")
    (commands,) = [block for block in blocks("sh") if "curl" in block]
    script = commands.replace("http://localhost:3000", str(server.base_url).rstrip("/")).replace("curl ", "curl -sS ")
    done = subprocess.run(["bash", "-ec", script], cwd=ROOT, capture_output=True, text=True, check=True)
    decoder = json.JSONDecoder()
    about, end = decoder.raw_decode(done.stdout)
    answer, _ = decoder.raw_decode(done.stdout[end:].strip())
    assert about["name"] == answer["model_name"] == "lenet5"
    assert np.argmax(answer["outputs"][0]["data"]) == 7


def test_the_pages_python_works(server: httpx.Client, capsys: pytest.CaptureFixture[str]) -> None:
    tritonclient("http")
    (code,) = [block for block in blocks("python") if "tritonclient.http" in block]
    exec(code.replace("localhost:3000", server.base_url.netloc.decode()).replace("docs/digit", f"{ROOT}/docs/digit"))
    assert re.match(r"\[b'(0\.9\d*|1):7:7' b'\S+'\]", capsys.readouterr().out)


@pytest.mark.slow
def test_kserves_client_in_an_environment_of_its_own(lenet5: PublishedModel, digits: DataSet, tmp_path: Path) -> None:
    uv = shutil.which("uv", path=os.fspath(Path(sys.executable).parent))
    if not uv:
        pytest.skip("uv is not installed")
    python = [uv, "run", "--no-project", "--isolated", "--with", "kserve==0.21.0", "python"]
    if subprocess.run([*python, "-c", "import kserve"], capture_output=True, check=False).returncode:
        pytest.skip("KServe's client cannot be installed")
    files = [tmp_path / f"{place}.png" for place in range(32)]
    for file, body in zip(files, files_of(digits, 32), strict=True):
        file.write_bytes(body)
    port = free_port()
    with serving(CONVSERVE_GRPC_PORT=str(port), CONVSERVE_RUNTIME="openvino") as (http, _):
        command = [*python, str(ROOT / "tests/service/kserve_client.py"), str(http.base_url), f"{ADDRESS}:{port}"]
        done = subprocess.run([*command, *map(str, files)], capture_output=True, text=True, check=True)
        expected = [int(np.argmax(probabilities_of(http, file.read_bytes()))) for file in files]
    found = json.loads(done.stdout)
    assert found["ready"] == found["grpc_ready"] == [True, True]
    assert found["http"] == found["grpc"] == expected
    in_json, binary = found["black"]
    assert in_json == binary
    assert found["error"].startswith("senet154 has no published weights for mnist5k")


@pytest.mark.slow
def test_two_fronts_answer_grpc_and_http_and_finish_what_they_have_begun(lenet5: PublishedModel) -> None:
    library = tritonclient("grpc")
    port = free_port()
    with serving(CONVSERVE_FRONTS="2", CONVSERVE_GRPC_PORT=str(port), CONVSERVE_RUNTIME="openvino") as (http, pid):

        def ask(_: int) -> int:
            with library.InferenceServerClient(f"{ADDRESS}:{port}") as client:
                return int(client.infer("lenet5", [image_input(library, [DIGIT] * 8)]).as_numpy("logits").argmax())

        with ThreadPoolExecutor(8) as pool:
            assert set(pool.map(ask, range(64))) == {7}
            (stats,) = http.get("/v2/models/lenet5/stats").json()["model_stats"]
            assert stats["inference_count"] == 64 * 8  # of both fronts
            asked = [pool.submit(ask, number) for number in range(16)]
            os.kill(pid, signal.SIGTERM)
            assert {answer.result() for answer in asked} == {7}
        psutil.Process(pid).wait(30)


@pytest.mark.slow
def test_a_taken_port_of_grpc_ends_the_start_with_one_line(lenet5: PublishedModel) -> None:
    def start(port: int) -> None:
        with serving(CONVSERVE_GRPC_PORT=str(port), CONVSERVE_RUNTIME="null"):
            pass

    with socket.create_server((ADDRESS, 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(RuntimeError) as error:
            start(port)
    line = f"cannot listen on {ADDRESS}, port {port}: Address already in use; choose another by CONVSERVE_GRPC_PORT"
    assert line in str(error.value)
    assert "Traceback" not in str(error.value)
