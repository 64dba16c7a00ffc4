"""Tests of a server that is stopped, killed, or receives new models while requests arrive."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import pytest

from engines.published import manifest
from engines.published.store import PublishedModel
from tests.serving import ROOT, is_ready, serving

DIGIT = (ROOT / "docs" / "digit.png").read_bytes()
SPLIT = set() if os.environ.get("CONVSERVE_FRONTS", "1") == "1" else {503}  # the fronts answer for a killed device


def classify(client: httpx.Client, model: str = "lenet5", **parameters: str | float) -> httpx.Response:
    return client.post("/classify", params={"model": model, **parameters}, content=DIGIT)


def worker_of(pid: int) -> psutil.Process:
    """Return the process that answers: the server's process with the most memory."""
    return max(psutil.Process(pid).children(recursive=True), key=lambda child: child.memory_info().rss)


@contextmanager
def constant_load(client: httpx.Client) -> Iterator[list[int]]:
    """Yield a list that collects the status of every answer, 0 for none, to four clients that ask all the time."""
    seen: list[int] = []
    over = threading.Event()

    def ask() -> None:
        while not over.is_set():
            try:
                seen.append(classify(client).status_code)
            except httpx.TransportError:
                seen.append(0)
                time.sleep(0.05)
            time.sleep(0.005)  # or the clients would take more of the processor than the server

    with ThreadPoolExecutor(4) as pool:
        for _ in range(4):
            pool.submit(ask)
        try:
            yield seen
        finally:
            over.set()


def test_a_killed_worker_is_back_within_seconds_and_only_what_was_in_flight_is_lost(lenet5: PublishedModel) -> None:
    with serving() as (client, pid), constant_load(client) as seen:
        time.sleep(1)
        worker_of(pid).send_signal(signal.SIGKILL)
        time.sleep(0.5)
        assert is_ready(client, None, seconds=30)
        assert classify(client).status_code == 200
        time.sleep(1)
        assert set(seen) <= {200, 0} | SPLIT
        assert seen[-1] == 200


def test_at_sigterm_it_turns_unready_answers_what_it_has_begun_and_ends(lenet5: PublishedModel) -> None:
    head = f"POST /classify?model=lenet5 HTTP/1.1\r\nHost: x\r\nContent-Length: {len(DIGIT)}\r\n\r\n".encode()
    with serving(CONVSERVE_DRAIN_S="4") as (client, pid):
        address = client.base_url.host, client.base_url.port or 80
        with constant_load(client) as seen, socket.create_connection(address, timeout=10) as begun:
            os.kill(pid, signal.SIGTERM)
            deadline = time.monotonic() + 3
            while client.get("/readyz").status_code == 200:
                assert time.monotonic() < deadline
                time.sleep(0.05)
            last = classify(client)  # still answers, while load balancers see that it is not ready
            assert (last.status_code, last.headers["connection"]) == (200, "close")
            assert set(seen) == {200}
            begun.sendall(head + DIGIT[:100])
            time.sleep(5)
            with pytest.raises(httpx.TransportError):
                httpx.get(client.base_url.join("/livez"), timeout=1)
            begun.sendall(DIGIT[100:])
            assert begun.recv(65536).startswith(b"HTTP/1.1 200")
        psutil.Process(pid).wait(20)
        assert set(seen) == {200, 0}


def test_new_weights_are_taken_up_and_withdrawn_without_a_failed_request(
    lenet5: PublishedModel, tmp_path: Path
) -> None:
    home = tmp_path / "models" / "lenet5"

    def publish(year: int, weights: bytes) -> str:
        """Publish lenet5 with other bytes at the end of its weights, which the engine does not read."""
        original = lenet5.manifest
        stage = tmp_path / "stage"
        shutil.copytree(lenet5.folder, stage)
        path = stage / manifest.WEIGHTS
        path.write_bytes(path.read_bytes() + weights)
        file = manifest.File(sha256=manifest.sha256(path), bytes=path.stat().st_size)
        changes = {"created": original.created.replace(year=year), "files": original.files | {manifest.WEIGHTS: file}}
        changed = original.model_copy(update=changes)
        (stage / manifest.FILE).write_text(changed.model_dump_json())
        folder = home / changed.tag.partition(":")[2]
        folder.parent.mkdir(parents=True, exist_ok=True)
        stage.rename(folder)
        return changed.tag

    def becomes(tag: str) -> bool:
        deadline = time.monotonic() + 20
        while classify(client).json()["model"] != tag:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.1)
        return True

    first = publish(2030, b"")
    with (
        serving(BENTOML_HOME=str(tmp_path), CONVSERVE_SCAN_S="0.2") as (client, _),
        constant_load(client) as seen,
    ):
        assert becomes(first)
        second = publish(2031, b"second")
        assert second != first
        assert becomes(second)
        (home / second.partition(":")[2]).rename(tmp_path / "withdrawn")
        assert becomes(first)
        deadline = time.monotonic() + 5
        while classify(client, second).status_code != 404:  # another front may look into the store a second later
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert set(seen) == {200}


def test_models_are_loaded_and_unloaded_by_the_admin_alone(lenet5: PublishedModel, server: httpx.Client) -> None:
    headers = {"Authorization": "Bearer secret"}
    refused = server.post("/models/lenet5/unload", headers=headers)
    assert (refused.status_code, refused.json()["code"]) == (403, "admin_off")
    with serving(CONVSERVE_ADMIN_TOKEN="secret") as (client, _):
        unloaded = client.post("/models/lenet5/unload", headers=headers)
        assert unloaded.json()["status"] == "published"
        loaded = client.post("/models/lenet5/load", headers=headers).json()
        assert (loaded["status"], loaded["memory_mb"] > 0) == ("ready", True)
        client.post("/models/lenet5/unload", headers=headers)
        assert classify(client).status_code == 200  # loads the model again
