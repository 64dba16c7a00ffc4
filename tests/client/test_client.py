"""Tests of both clients with real servers: answers, overload, bounded memory, and the examples of the README."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from convserve_client import AsyncConvServeClient, ConvServeClient, Question, ServerProblem
from convserve_client.client import Image, headers_with
from engines.published.store import PublishedModel
from service.application import create_application
from service.context import ServerContext, make_context
from service.settings import Settings
from tests.service.stubs import StubEngine, put
from tests.serving import ROOT

DIGIT = ROOT / "docs" / "digit.png"
README = (ROOT / "convserve_client" / "README.md").read_text()


@pytest.fixture
def stubbed(lenet5: PublishedModel) -> ServerContext:
    """Return a server in this process that says 7 to every image, in a predicted 10 ms."""
    context = make_context(Settings(tune="off"))
    put(context, lenet5.manifest.tag, StubEngine(7), 0.01)
    return context


def client_within(context: ServerContext, **options: Any) -> AsyncConvServeClient:
    """Return a client of a server in this process."""
    transport = httpx.ASGITransport(create_application(context), raise_app_exceptions=False)
    return AsyncConvServeClient("http://server", http=httpx.AsyncClient(transport=transport), **options)


def examples(language: str) -> list[str]:
    """Return the README's examples in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def test_a_client_classifies_one_and_many(server: httpx.Client, lenet5: PublishedModel) -> None:
    with ConvServeClient(str(server.base_url)) as client:
        answer = client.classify(DIGIT, Question("lenet5", top_k=2))
        assert (answer.label, answer.model, len(answer.predictions)) == ("7", lenet5.manifest.tag, 2)
        with pytest.raises(ServerProblem, match="unsupported_format: not an image"):
            client.classify(b"a text", "lenet5")
        with pytest.raises(ServerProblem, match="unknown_model") as raised:
            client.classify(DIGIT, "lenet")
        assert raised.value.status == 404
        images: list[Image] = [DIGIT, b"a text", str(DIGIT), ROOT / "missing.png", DIGIT.read_bytes()]
        results = list(client.classify_many(images, "lenet5", batch=2))
    shown = [result.code if isinstance(result, ServerProblem) else result.label for result in results]
    assert shown == ["7", "unsupported_format", "7", "unreadable", "7"]


def test_an_address_needs_a_scheme_and_a_server() -> None:
    for url in ("localhost:3000", "http://", "http://localhost:port", "ftp://localhost"):
        with pytest.raises(ValueError, match="is no address of a server; the form is http://localhost:3000"):
            ConvServeClient(url)
    client = ConvServeClient("http://127.0.0.1:9", patience_s=0)
    with client, pytest.raises(ServerProblem, match="unreachable: ConnectError"):
        client.classify(DIGIT, "lenet5")


def test_a_key_that_was_read_from_a_file_is_sent_without_its_line_break() -> None:
    assert headers_with("one\n") == {"X-API-Key": "one"}
    assert headers_with(None) == headers_with(" ") == {}
    for key in ("one\ntwo", "\u20ac"):
        with pytest.raises(ValueError, match="the API key has characters that a header cannot have"):
            AsyncConvServeClient("http://127.0.0.1:9", api_key=key)


@pytest.mark.anyio
async def test_an_overloaded_server_is_asked_again_when_it_says(stubbed: ServerContext, lenet5: PublishedModel) -> None:
    queue = stubbed.catalog.models[lenet5.manifest.tag].chosen.queue
    assert queue
    queue.decoding = 70
    async with client_within(stubbed) as client:
        asyncio.get_running_loop().call_later(0.15, lambda: setattr(queue, "decoding", 0))
        began = time.monotonic()
        answer = await client.classify(DIGIT, Question("lenet5", deadline_ms=500))
        assert answer.label == "7"
        assert time.monotonic() - began > 0.15  # the rest of 71 images in 500 ms
    queue.decoding = 70
    async with client_within(stubbed, patience_s=0.1) as client:
        with pytest.raises(ServerProblem, match="overloaded") as raised:
            await client.classify(DIGIT, Question("lenet5", deadline_ms=500))
    assert raised.value.retry_after_s


@pytest.mark.anyio
async def test_a_request_for_which_there_is_never_time_is_divided(stubbed: ServerContext) -> None:
    async with client_within(stubbed, patience_s=5) as client:
        question = Question("lenet5", deadline_ms=250)  # of which 64 images need 640
        results = [result async for result in client.classify_many([DIGIT] * 64, question, batch=64, concurrency=1)]
    assert [result.label for result in results if not isinstance(result, ServerProblem)] == ["7"] * 64


@pytest.mark.anyio
async def test_no_more_images_are_read_than_are_under_way(stubbed: ServerContext) -> None:
    read, body = 0, DIGIT.read_bytes()

    def images() -> Iterator[bytes]:
        nonlocal read
        for _ in range(100):
            read += 1
            yield body

    async with client_within(stubbed) as client:
        results = client.classify_many(images(), "lenet5", batch=4, concurrency=3)
        count = 0
        async for result in results:
            assert not isinstance(result, ServerProblem)
            count += 1
            assert read <= count + 4 * 3 + 4
            if count == 50:
                break
        await results.aclose()
    assert read < 70


def test_the_readmes_programs_run(
    server: httpx.Client, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    for program in examples("python"):
        exec(program.replace("http://localhost:3000", str(server.base_url)), {})
    first, *rest = capsys.readouterr().out.splitlines()
    assert first.startswith(("7 0.", "7 1.0"))
    assert rest[0] == "7"
    assert rest[1].startswith("unsupported_format: ")
    assert rest[2:] == ["100 {'7'}"]


def test_the_readmes_commands_run(server: httpx.Client, tmp_path: Path) -> None:
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    commands = [text for text in examples("sh") if "-m convserve_client" in text]
    assert len(commands) == 2
    for command in commands:
        line = command.replace("python ", f"{sys.executable} ").replace("http://localhost:3000", str(server.base_url))
        done = subprocess.run(
            line,
            shell=True,
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        rows = (tmp_path / "answers.csv").read_text().splitlines()
        assert any(row.startswith("digit.png,7,") for row in rows)
        assert done.stderr.endswith("had a row before\n") == ("--out" in command)


@pytest.mark.slow  # a build
def test_the_package_is_installed_alone(tmp_path: Path) -> None:
    folder, site = tmp_path / "source", tmp_path / "site"
    folder.mkdir()
    for file in (ROOT / "convserve_client").iterdir():
        if file.is_file():
            (folder / file.name).write_bytes(file.read_bytes())
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--target", site, folder], check=True)
    metadata = next(site.glob("convserve_client-*.dist-info/METADATA")).read_text()
    assert re.findall("^Requires-Dist: ([a-z0-9]+)", metadata, re.MULTILINE) == ["httpx"]
    assert (site / "convserve_client" / "py.typed").exists()
    done = subprocess.run(
        [sys.executable, "-m", "convserve_client", "--help"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "--max-latency-ms" in done.stdout
