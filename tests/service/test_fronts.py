"""Tests of a real server with two fronts and a device process: figures of the whole, and processes that are killed."""

from __future__ import annotations

import os
import re
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import psutil
import pytest

from engines.published import files
from engines.published.store import PublishedModel
from service.processes import remove_deserted
from tests.service.test_lifecycle import classify, constant_load
from tests.serving import is_ready, serving

DEVICE = "convserve_device"


@pytest.fixture(scope="module")
def split(lenet5: PublishedModel) -> Iterator[tuple[httpx.Client, int]]:
    """Yield a client of a server with two fronts and one device process, and the server's process id."""
    with serving(CONVSERVE_FRONTS="2", CONVSERVE_RUNTIME="openvino") as (client, pid):
        yield client, pid


def processes(pid: int) -> tuple[list[psutil.Process], list[psutil.Process]]:
    """Return the fronts and the device processes of a server."""
    fronts: list[psutil.Process] = []
    devices: list[psutil.Process] = []
    for child in psutil.Process(pid).children():
        with suppress(psutil.NoSuchProcess):
            command = child.cmdline()
            if "_bentoml_impl.worker.service" in command:
                (devices if DEVICE in command else fronts).append(child)
    return fronts, devices


def until(condition: Callable[[], object], seconds: float = 30) -> None:
    """Wait until a condition holds; fail after `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def counted(client: httpx.Client, pattern: str) -> float:
    """Return the sum of the metrics whose lines match a pattern, by a connection of its own."""
    lines = httpx.get(client.base_url.join("/metrics")).text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if re.match(pattern, line))


def test_one_scrape_and_one_list_of_latencies_are_of_all_fronts(split: tuple[httpx.Client, int]) -> None:
    client, _ = split
    for _ in range(20):  # each on a connection of its own, which any front may accept
        with httpx.Client(base_url=client.base_url) as another:
            answer = classify(another)
        assert answer.json()["predictions"][0]["label"] == "7"
        assert answer.headers["Server-Timing"].startswith("decode;dur=")
    assert counted(client, r'convserve_images_total\{.*outcome="ok"') == 20
    assert counted(client, r'convserve_request_duration_seconds_count\{.*route="/classify"') == 20
    assert counted(client, "process_resident_memory_bytes") > 300e6
    for _ in range(4):
        (latency,) = httpx.get(client.base_url.join("/models/lenet5/latency")).json()["models"].values()
        assert latency["requests"] == 20
        assert latency["stages_ms"].keys() == {"decode", "queue", "inference"}
    (model,) = client.get("/models/lenet5").json()["models"]
    assert (model["status"], model["runtime"], model["precision"]) == ("ready", "openvino", "fp32")
    assert model["memory_mb"] > 1


def test_a_front_that_is_killed_is_replaced_while_the_other_answers(split: tuple[httpx.Client, int]) -> None:
    client, pid = split
    (front, _), _ = processes(pid)
    with constant_load(client) as seen:
        time.sleep(0.5)
        front.send_signal(signal.SIGKILL)
        until(lambda: len(processes(pid)[0]) == 2 and front not in processes(pid)[0])
        time.sleep(1)
    assert set(seen) <= {200, 0}
    assert seen.count(0) <= 8  # at most what was in flight and one try again of each client
    assert seen[-1] == 200


def test_a_device_process_that_is_killed_turns_readiness_off_and_comes_back(split: tuple[httpx.Client, int]) -> None:
    client, pid = split
    _, (device,) = processes(pid)
    device.send_signal(signal.SIGKILL)
    until(lambda: client.get("/readyz", timeout=2).status_code == 503)
    refused = classify(client)
    assert (refused.status_code, refused.json()["code"], refused.headers["Retry-After"]) == (503, "device_gone", "1")
    assert client.get("/models").status_code == 200
    assert is_ready(client, None, seconds=30)
    until(lambda: classify(client).status_code == 200)


def test_its_shared_memory_and_folder_are_gone_at_its_end(lenet5: PublishedModel) -> None:
    before = set(os.listdir("/dev/shm"))
    with serving(CONVSERVE_FRONTS="2", CONVSERVE_DEVICES="2", CONVSERVE_RUNTIME="null") as (client, pid):
        fronts, devices = processes(pid)
        assert (len(fronts), len(devices)) == (2, 2)
        with constant_load(client) as seen:
            time.sleep(1)
            assert set(seen) == {200}
            folder = psutil.Process(fronts[0].pid).environ()["_CONVSERVE_FOLDER"]
            assert {"device-1.sock", "device-2.sock"} < set(os.listdir(folder))
        both = [counted(client, "convserve_batch_size_count") for _ in range(2)]
        assert both[0] == both[1] > 0
    assert not os.path.exists(folder)
    assert set(os.listdir("/dev/shm")) == before


@pytest.mark.slow
def test_all_processes_end_when_the_parent_is_killed(lenet5: PublishedModel) -> None:
    with serving(CONVSERVE_FRONTS="2", CONVSERVE_RUNTIME="null") as (_, pid):
        children = psutil.Process(pid).children()
        assert len(children) >= 3
        os.kill(pid, signal.SIGKILL)
        _, alive = psutil.wait_procs(children, 20)
        assert not alive


def test_folders_of_killed_servers_are_removed_at_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    killed, running, other = tmp_path / "convserve-a", tmp_path / "convserve-b", tmp_path / "convserve-c"
    for folder in (killed, running, other):
        folder.mkdir()
    (killed / "owner.lock").touch()
    os.utime(killed / "owner.lock", (0, 0))
    with files.lock_if_free(running / "owner.lock"):
        remove_deserted()
    assert {path.name for path in tmp_path.iterdir()} == {"convserve-b", "convserve-c"}
