"""Tests of the cache of compiled engines on disk."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from engines.published import manifest, store
from engines.published.store import PublishedModel
from engines.runtimes.cache import cached
from engines.runtimes.engine import EngineError
from engines.runtimes.registry import EngineSpec, make_engine

KEY = ("sha", "runtime", "1.0", "processor", "fp32")


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Folder of an empty cache, which need not exist."""
    monkeypatch.setattr(store, "root", lambda: tmp_path / "models")
    return tmp_path / "convserve-engines"


def get(built: list[str], key: tuple[str, ...] = KEY) -> str:
    """Return the cached text of `key`; append to `built` if it had to be built."""

    def build() -> str:
        built.append(key[0])
        return f"compiled {key[0]}"

    return cached(key, build, str.encode, lambda data: f"{data.decode()}, read")


def only_file(folder: Path) -> Path:
    """Return the only cached file of a folder."""
    (path,) = (path for path in folder.iterdir() if path.suffix != ".lock")
    return path


@pytest.mark.usefixtures("folder")
def test_a_second_call_reads_from_the_cache() -> None:
    built: list[str] = []
    assert get(built) == "compiled sha"
    assert get(built) == "compiled sha, read"
    for part in range(len(KEY)):
        get(built, (*KEY[:part], "other", *KEY[part + 1 :]))
    assert len(built) == 1 + len(KEY)  # each part of the key distinguishes engines


@pytest.mark.parametrize("damage", [lambda data: data[:-1], lambda data: b"", lambda data: b"?" + data[1:]])
def test_a_damaged_file_is_built_again(folder: Path, damage: object) -> None:
    built: list[str] = []
    get(built)
    cached_file = only_file(folder)
    cached_file.write_bytes(damage(cached_file.read_bytes()))  # type: ignore[operator]
    assert get(built) == "compiled sha"
    assert get(built) == "compiled sha, read"
    assert len(built) == 2


def test_a_file_that_the_runtime_refuses_is_built_again(folder: Path) -> None:
    def refuse(data: bytes) -> str:
        raise RuntimeError(data)

    assert cached(KEY, lambda: "a", str.encode, refuse) == "a"
    assert cached(KEY, lambda: "b", str.encode, refuse) == "b"
    assert only_file(folder).read_bytes().endswith(b"b")


def test_a_failed_build_writes_nothing(folder: Path) -> None:
    def fail() -> str:
        raise RuntimeError("no such operator")

    with pytest.raises(RuntimeError, match="no such operator"):
        cached(KEY, fail, str.encode, bytes.decode)
    assert [path.suffix for path in folder.iterdir()] == [".lock"]


def test_every_call_builds_where_nothing_can_be_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(store, "root", lambda: tmp_path / "file" / "models")
    built: list[str] = []
    assert get(built) == get(built) == "compiled sha"
    assert len(built) == 2


@pytest.mark.usefixtures("folder")
def test_one_of_several_threads_builds() -> None:
    built: list[str] = []
    together = threading.Barrier(8)

    def request(_: int) -> str:
        together.wait()
        return get(built)

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(request, range(8)))
    assert len(built) == 1
    assert sorted(answers) == ["compiled sha", *["compiled sha, read"] * 7]


PROCESS = """
import sys, time
from engines.runtimes.cache import cached
from engines.runtimes.engine import EngineError

def build():
    print("building", flush=True)
    time.sleep(float(sys.argv[1]))
    return "compiled"

print("starting", flush=True)
print(cached(("key",), build, str.encode, bytes.decode))
"""


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[list[subprocess.Popen[str]]]:
    """Two processes that share an empty cache; the first is building when the second starts."""
    environment = os.environ | {"BENTOML_HOME": str(tmp_path)}

    def start(seconds: float) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", PROCESS, str(seconds)]
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)

    first = start(30)
    assert first.stdout
    assert [first.stdout.readline() for _ in range(2)] == ["starting\n", "building\n"]
    second = start(0)
    assert second.stdout
    assert second.stdout.readline() == "starting\n"
    with first, second:
        yield [first, second]
        first.kill()
        second.kill()


def test_another_process_builds_after_a_kill(processes: list[subprocess.Popen[str]]) -> None:
    first, second = processes
    with pytest.raises(subprocess.TimeoutExpired):
        second.communicate(timeout=3)  # the second process waits for the first
    first.kill()
    assert second.communicate(timeout=20)[0] == "building\ncompiled\n"


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize(("streams", "threads"), [(1, None), (1, 1), (2, 2)])
def test_a_cached_engine_answers_the_same(
    lenet5_everywhere: PublishedModel,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    precision: str,
    streams: int,
    threads: int | None,
) -> None:
    pixels = load_file(lenet5_everywhere.folder / manifest.VERIFICATION)["pixels"]
    plain = make_engine(lenet5_everywhere, EngineSpec("openvino", precision)).infer(pixels)
    monkeypatch.setattr(store, "root", lambda: tmp_path / "models")
    spec = EngineSpec("openvino", precision, streams, threads)
    try:
        built = make_engine(lenet5_everywhere, spec).infer(pixels)
    except EngineError as error:
        assert "streams" in str(error)  # noqa: PT017  # this machine has too few cores
        return
    cached_file = only_file(tmp_path / "convserve-engines")
    written = cached_file.stat().st_mtime_ns
    read = make_engine(lenet5_everywhere, spec).infer(pixels)
    assert cached_file.stat().st_mtime_ns == written  # not built again
    other = make_engine(lenet5_everywhere, EngineSpec("openvino", precision)).infer(pixels)
    assert cached_file.stat().st_mtime_ns == written  # streams and threads are not part of the compiled model
    assert np.abs(other - plain).max() <= 1e-5 * np.abs(plain).max()
    assert np.array_equal(built, read)
    assert np.abs(read - plain).max() <= 1e-5 * np.abs(plain).max()
