"""Tests of --host and --api-key, of every command that sends requests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from engines.published.store import PublishedModel
from loadtest.server import server_of
from loadtest.traffic import ScenarioError
from tests.conftest import Run
from tests.loadtest.conftest import Locust
from tests.loadtest.stub import StubHandler, stub_server
from tests.serving import ROOT, serving

KEY = "secret-of-the-test"
COMMANDS = {
    "sweep": ("--seconds", "1", "--steps", "1", "--in-flight", "2", "--p99-ms", "2000"),
    "smoke": (),
    "promises": ("--heavy", "lenet5", "--seconds", "1", "--requests", "20"),
}


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("http://127.0.0.1:3000", "http://127.0.0.1:3000"),
        ("http://127.0.0.1:3000/", "http://127.0.0.1:3000"),
        (" https://example.org// ", "https://example.org"),
        ("http://[::1]:3000/", "http://[::1]:3000"),
        ("http://gateway/cnn/v1/", "http://gateway/cnn/v1"),
    ],
)
def test_slashes_at_the_end_of_a_host_mean_nothing(host: str, url: str) -> None:
    assert server_of(host).url == url


@pytest.mark.parametrize(
    ("host", "message"),
    [
        ("localhost:3000", "has no scheme: write http://localhost:3000$"),
        ("127.0.0.1", "has no scheme: write http://127.0.0.1$"),
        ("//gateway/cnn", "has no scheme: write http://gateway/cnn$"),
        ("ftp://localhost", "is no address of a server, such as http://localhost:3000"),
        ("http://", "is no address of a server"),
        ("http://localhost:99999", "is no address: Port out of range"),
        ("http://[::1", "is no address: "),
        ("http://localhost:3000/?model=lenet5", "write the address only"),
        ("", "has no scheme"),
    ],
)
def test_a_host_that_cannot_be_one_says_how_to_write_it(host: str, message: str) -> None:
    with pytest.raises(ScenarioError, match=f"--host: .*{message}"):
        server_of(host)


def test_a_key_is_a_header_and_is_never_printed() -> None:
    server = server_of("http://localhost", f" {KEY}\n")
    assert server.headers == {"X-API-Key": KEY}
    assert KEY not in f"{server} {server!r}"
    assert server_of("http://localhost", "").headers == {}
    with pytest.raises(ScenarioError, match="printable ASCII"):
        server_of("http://localhost", "schlüssel")


@pytest.fixture(scope="module")
def locked(lenet5: PublishedModel) -> Iterator[str]:
    """Return the address of a server that needs a key, with a slash at its end."""
    with serving(CONVSERVE_API_KEYS=f"another,{KEY}", CONVSERVE_RUNTIME="openvino") as (client, _):
        yield str(client.base_url.join("/"))


@pytest.mark.parametrize(
    "command",
    ["smoke", pytest.param("sweep", marks=pytest.mark.slow), pytest.param("promises", marks=pytest.mark.slow)],
)
def test_every_request_of_a_command_carries_the_key(
    run: Run, locked: str, images: Path, tmp_path: Path, command: str
) -> None:
    options = ["loadtest", command, "--host", locked, "--images", images, *COMMANDS[command]]
    if command == "sweep":
        options += ["--out", tmp_path / "sweep.jsonl"]
    for key, fault in ((None, "needs an API key"), ("wrong", "does not accept the API key")):
        done = run(*options, check=False, CONVSERVE_API_KEY=key or "")
        remedy = "name one with --api-key, or CONVSERVE_API_KEY in the environment"
        assert (done.returncode, done.stderr.count("\n")) == (1, 1)
        assert f"{locked.rstrip('/')} {fault}: {remedy}" in done.stderr
    done = run(*options, CONVSERVE_API_KEY=KEY)
    assert "401" not in done.stdout
    if command == "smoke":
        printed = done.stdout.splitlines()
        assert [line.partition(":")[0] for line in printed] == ["single_stream", "offline", "server", "ramp", "spike"]
        assert all(line.endswith("0 failed, 0 other than alone") for line in printed)
    if command == "sweep":
        assert KEY not in (tmp_path / "sweep.jsonl").read_text()


def test_locust_carries_the_key(locust: Locust, locked: str, monkeypatch: pytest.MonkeyPatch) -> None:
    usual = ["--scenario", "single_stream", "-t", "1s"]
    done = locust(locked, *usual)
    assert (done.returncode, "needs an API key: name one with --api-key" in done.stderr) == (2, True)
    done = locust(locked, *usual, "--api-key", KEY)
    assert (done.returncode, " 0 failed" in done.stderr) == (0, True)
    monkeypatch.setenv("CONVSERVE_API_KEY", KEY)
    done = locust(locked, *usual)
    assert (done.returncode, " 0 failed" in done.stderr) == (0, True)
    assert KEY not in done.stdout + done.stderr


class ServesNothing(StubHandler):
    """Handler of a server without models, which lists none."""

    def do_GET(self) -> None:  # noqa: N802 (the name that http.server calls)
        """Send an empty list, as JSON."""
        self.send_response(200)
        self.send_header("content-length", "2")
        self.end_headers()
        self.wfile.write(b"[]")


def test_a_sweep_of_all_models_where_there_are_none_is_an_error(run: Run, images: Path, tmp_path: Path) -> None:
    out = tmp_path / "sweep.jsonl"
    with stub_server(ServesNothing) as host:
        options = ("--host", host, "--images", images, "--models", "published", "--out", out)
        done = run("loadtest", "sweep", *options, check=False)
    assert (done.returncode, done.stderr) == (1, f"error: {host} serves no model: publish one, or see its log\n")
    assert not out.exists()


def test_results_go_to_a_folder_that_git_ignores(run: Run) -> None:
    for command, out in (
        ("sweep", "results/sweep.jsonl"),
        ("report", "results/report"),
        ("peers", "results/peers.jsonl"),
    ):
        assert out in run("loadtest", command, "--help", COLUMNS="200").stdout
    assert "/results/" in (ROOT / ".gitignore").read_text().splitlines()


class BehindGateway(StubHandler):
    """Handler that answers below a path only, and only with the key."""

    def answer(self) -> bytes:
        """Return an answer, or nothing, which closes the connection."""
        good = self.path.startswith("/cnn/v1/classify?") and self.headers["X-API-Key"] == KEY
        return super().answer() if good else b""


@pytest.mark.slow
def test_smoke_keeps_a_path_in_front_of_the_routes(run: Run, images: Path) -> None:
    with stub_server(BehindGateway) as address:
        done = run("loadtest", "smoke", "--host", f"{address}/cnn/v1/", "--images", images, "--api-key", KEY)
    assert done.stdout.count(" 0 failed") == 5


def test_a_path_in_front_of_the_routes_is_kept(locust: Locust) -> None:
    with stub_server(BehindGateway) as address:
        done = locust(f"{address}/cnn/v1/", "--scenario", "single_stream", "-t", "3s", "--api-key", KEY)
        assert (done.returncode, " 0 failed" in done.stderr) == (0, True)


def test_a_host_without_a_scheme_is_one_line(run: Run, locust: Locust, images: Path) -> None:
    for command in COMMANDS:
        done = run("loadtest", command, "--host", "localhost:3000", "--images", images, check=False)
        assert (done.returncode, done.stderr) == (
            1,
            "error: --host: 'localhost:3000' has no scheme: write http://localhost:3000\n",
        )
