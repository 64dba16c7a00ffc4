"""Tests of `python -m loadtest peers --device gpu`: every peer serves the torch network, here on the CPU."""

from __future__ import annotations

import struct
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from engines.published.store import PublishedModel
from engines.runtimes.registry import EngineSpec, open_engine
from loadtest.peers.gpu import driver, use, watched
from loadtest.peers.launch import ON_GPU, SERVERS_ON_GPU, environment, installed
from loadtest.peers.photos import read_tensors
from loadtest.peers.results import PeerRow, read_peers, summary
from loadtest.peers.torch_network import infer_torch
from tests.conftest import Run
from tests.serving import ROOT

HEADER = "Inference-Header-Content-Length"


def test_without_a_gpu_one_line_says_so(run: Run) -> None:
    done = run("loadtest", "peers", "--device", "gpu", check=False, CUDA_VISIBLE_DEVICES="")
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)
    assert done.stderr.startswith("error: --device gpu: there is no NVIDIA GPU that may be used here")


def test_convserve_runs_torch_unless_a_runtime_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CONVSERVE_RUNTIME", raising=False)
    monkeypatch.setenv("CONVSERVE_FRONTS", "3")
    set_here = environment("lenet5", "fp16", "cpu")
    assert (set_here["CONVSERVE_RUNTIME"], set_here["CONVSERVE_PRECISION"]) == ("torch", "fp16")
    assert (set_here["CONVSERVE_FRONTS"], set_here["PEER_DEVICE"]) == ("3", "cpu")
    monkeypatch.setenv("CONVSERVE_RUNTIME", "tensorrt")
    assert environment("lenet5", "fp16", "cpu")["CONVSERVE_RUNTIME"] == "tensorrt"
    assert environment("lenet5", "fp16")["CONVSERVE_RUNTIME"] == "openvino"


@pytest.mark.slow
def test_the_peers_network_answers_as_the_engine(lenet5: PublishedModel) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, *lenet5.manifest.preprocess.shape), np.uint8)
    expected = open_engine(lenet5, EngineSpec("openvino", "fp32")).infer(pixels)
    np.testing.assert_allclose(infer_torch(lenet5, "fp32", "cpu", [1])(pixels), expected, rtol=1e-3, atol=1e-3)


def answer(body: bytes, head: int | None = None, status: int = 200) -> Any:
    """Return an answer as far as `read_tensors` looks at answers."""
    return SimpleNamespace(content=body, headers={HEADER: str(head)} if head else {}, status_code=status)


def test_an_answer_of_triton_is_read() -> None:
    head = b'{"outputs":[]}'
    assert read_tensors(answer(head + "Käse".encode() + struct.pack("<f", 0.5), len(head))) == "Käse"
    for broken in (
        answer(b'{"error":"Stub process is not healthy"}', status=500),
        answer(head, len(head)),
        answer(head + b"x"),
        answer(head + b"x" + struct.pack("<f", 7), len(head)),
    ):
        with pytest.raises(ValueError, match=r"200|500|malformed"):
            read_tensors(broken)


def test_a_gpu_is_watched_by_nvidia_smi(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    command = tmp_path / "nvidia-smi"
    command.write_text(
        '#!/bin/sh\ncase "$*" in *driver_version*) echo 580.159;; *) echo "50, 100"; echo "[N/A], 7"; echo "100, 300";'
        f" touch {tmp_path}/watching; exec sleep 60;; esac\n"
    )
    command.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert driver("0") == "driver 580.159"
    with watched("0") as found:
        deadline = time.monotonic() + 30
        while not (tmp_path / "watching").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
    assert found == {"gpu_use": 0.75, "gpu_bytes": 300 * 2**20}
    with watched(None) as found:
        pass
    assert (found, use("")) == ({}, {})


def test_without_nvidia_smi_the_gpu_is_not_watched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with watched("0") as found:
        pass
    assert (found, driver("0")) == ({}, "")


def test_the_table_has_the_gpus_columns_where_a_row_has_them() -> None:
    figures = {"seconds": 2.0, "answers": 10, "failed": 0, "wrong": 0, "p50_ms": 1.0, "p99_ms": 2.0, "cpu_s": 1.0}
    names = {"setting": "", "model": "lenet5", "connections": 1, "server": "convserve", "round": 0, "date": ""}
    row = PeerRow(**cast("dict[str, Any]", names | figures), pss_bytes=1)
    busy = row.model_copy(update={"gpu_use": 0.5, "gpu_bytes": 2e6})
    assert " GPU | GPU MB |" in summary([busy])
    assert summary([busy]).endswith("| 50% | 2 |")
    assert "GPU" not in summary([row])


COMPARE = """
import locust, sys
from pathlib import Path
from loadtest.peers.compare import PeerComparison, compare
setting = dict(models=["lenet5"], connections=[3], rounds=1, seconds=1, precision="fp32", rest_s=0, device="cpu")
print(compare(PeerComparison(images=Path("images/photos"), **setting), Path(sys.argv[1])))
"""


@pytest.mark.slow
def test_every_peer_serves_the_torch_network(lenet5: PublishedModel, tmp_path: Path) -> None:
    assert lenet5
    out = tmp_path / "peers.jsonl"
    command = [sys.executable, "-c", COMPARE, str(out)]
    table = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout
    rows = {row.server: row for row in read_peers(out)}
    assert rows.keys() == set(installed(SERVERS_ON_GPU, ON_GPU))
    for row in rows.values():
        assert row.answers > 0
        assert (row.failed, row.wrong, row.error) == (0, 0, None)
    assert "torch in fp32 on cpu" in table
