"""Tests of `python -m loadtest protocols`: every way to ask is answered as /classify is."""

from __future__ import annotations

import time
from pathlib import Path

import httpx
import pytest

from engines.published.store import PublishedModel
from loadtest.protocols.client import loop
from loadtest.protocols.command import others
from loadtest.protocols.ways import MANY, Way, jpegs, read_message, ways
from service.inference_protocol.messages import classes
from tests.conftest import Run
from tests.service.test_images import encoded
from tests.serving import free_port, serving
from training.data import DataSet


@pytest.fixture(scope="module")
def files(digits: DataSet) -> list[bytes]:
    """Return three digits as JPEGs."""
    return [encoded(digits.held_out.pictures[place], "JPEG") for place in range(3)]


def answers(server: httpx.Client, way: Way) -> list[str]:
    """Return the labels of the answers to all bodies of a way over HTTP."""
    labels = []
    for body in way.bodies:
        answer = server.post(way.path or "", content=body, headers=dict(way.headers))
        assert answer.status_code == 200, answer.text
        labels += way.read(answer.content)
    return labels


def test_every_way_over_http_has_the_labels_of_classify(
    server: httpx.Client, lenet5: PublishedModel, files: list[bytes]
) -> None:
    found = ways("lenet5", files, lenet5.manifest.preprocess.shape, grpc=False)
    labels = {way.name: answers(server, way) for way in found}
    for way in found:
        assert len(labels[way.name]) == len(way.bodies) * way.images
        assert others(labels[way.name], labels[way.beside]) == 0
    assert {way.images for way in found} == {1, MANY}


def test_labels_that_differ_are_counted() -> None:
    assert others(["a", "b", "a", "c"], ["a", "b"]) == 1


def test_labels_of_a_grpc_message_are_read() -> None:
    raw = jpegs([b"0.9:7:seven", "0.8:1:Käse: jung".encode()])[1]
    message = classes()["ModelInfer"].answer(raw_output_contents=[raw])
    assert read_message(message.SerializeToString()) == ["seven", "Käse: jung"]


def test_a_loop_sends_all_bodies_in_turn_until_its_end() -> None:
    sent = []

    def send(body: bytes) -> bytes:
        sent.append(body)
        return body.upper()

    outcome = loop(send, [b"a", b"b", b"c"], 4, 0, 0)  # which has ended
    assert (outcome.tally.answers, sent) == (0, [])
    outcome = loop(send, [b"a", b"b", b"c"], 4, time.perf_counter(), 0.05)
    assert sent[:4] == [b"b", b"c", b"a", b"b"]
    assert outcome.answers == {0: b"A", 1: b"B", 2: b"C"}
    assert outcome.tally.answers == outcome.tally.sent == len(sent)


@pytest.mark.slow
def test_the_command_measures_http_and_grpc(
    run: Run, lenet5: PublishedModel, files: list[bytes], tmp_path: Path
) -> None:
    assert lenet5
    for place, file in enumerate(files):
        (tmp_path / f"{place}.jpg").write_bytes(file)
    port = free_port()
    quick = ("--models", "lenet5", "--connections", "1,2", "--rounds", "1", "--seconds", "0.3", "--images", tmp_path)
    with serving(CONVSERVE_GRPC_PORT=str(port)) as (client, _):
        arguments = ("protocols", "--host", str(client.base_url).rstrip("/"), "--grpc", f"127.0.0.1:{port}", *quick)
        table = run("loadtest", *arguments).stdout
        failed = run("loadtest", *arguments[:-2], "--images", tmp_path, "--grpc", "127.0.0.1:1", check=False)
    lines = [line for line in table.splitlines() if line.startswith("| `lenet5`")]
    assert len(lines) == 10 + 7
    assert all(line.endswith("| 0 |") for line in lines)
    assert "| `lenet5` | 2 | gRPC, pixels |" in table
    assert (failed.returncode, "Traceback" in failed.stderr) == (1, False)
    assert "gRPC, a JPEG: RuntimeError: StatusCode.UNAVAILABLE" in failed.stderr
