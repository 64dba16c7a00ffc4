"""Tests of the address on which the server listens: its default, a taken port, and the wait of `make serve`."""

from __future__ import annotations

import os
import socket
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from service import address
from tests.conftest import Run
from tests.serving import ROOT, free_port


@pytest.fixture
def taken() -> Iterator[int]:
    """Yield a port on which somebody else listens."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        yield other.getsockname()[1]


def ends_with(monkeypatch: pytest.MonkeyPatch, *, host: str = "", port: str) -> str:
    """Return the line with which the check of an address ends."""
    monkeypatch.setenv("BENTOML_HOST", host)
    monkeypatch.setenv("BENTOML_PORT", port)
    with pytest.raises(SystemExit) as end:
        address.main([])
    assert "\n" not in str(end.value)
    return str(end.value)


def test_a_taken_port_is_one_line_before_anything_is_trained(monkeypatch: pytest.MonkeyPatch, taken: int) -> None:
    line = f"error: cannot listen on 127.0.0.1, port {taken}: Address already in use; choose another by BENTOML_PORT"
    assert ends_with(monkeypatch, port=str(taken)) == line
    assert ends_with(monkeypatch, host="0.0.0.0", port=str(taken)) == line.replace("127.0.0.1", "0.0.0.0")
    recipe = (ROOT / "Makefile").read_text().partition("\nserve:")[2]
    assert recipe.index("service.address") < recipe.index("-m training lenet5")


@pytest.mark.parametrize(
    ("host", "port", "named"),
    [
        ("localhost", "3000", "BENTOML_HOST: 'localhost' is no IP address"),
        ("192.0.2.1", "3000", "choose another by BENTOML_HOST"),
        ("", "http", "BENTOML_PORT: 'http' is no port"),
        ("", "70000", "BENTOML_PORT: 70000 is no port"),
        ("", "-1", "BENTOML_PORT: '-1' is no port"),
    ],
)
def test_an_impossible_address_is_named(monkeypatch: pytest.MonkeyPatch, host: str, port: str, named: str) -> None:
    assert named in ends_with(monkeypatch, host=host, port=port)


def test_a_free_port_is_no_problem_and_stays_free(monkeypatch: pytest.MonkeyPatch, taken: int) -> None:
    monkeypatch.setenv("BENTOML_PORT", "0")
    monkeypatch.delenv("BENTOML_HOST", raising=False)
    address.main([])
    assert address.problem_of("127.0.0.1", taken)


def test_the_port_of_grpc_is_free_is_another_and_is_of_the_same_host(
    monkeypatch: pytest.MonkeyPatch, taken: int
) -> None:
    monkeypatch.delenv("BENTOML_HOST", raising=False)
    assert address.grpc_problem("127.0.0.1", 3000, 3000) == (
        "CONVSERVE_GRPC_PORT: 3000 is the port of HTTP; choose another"
    )
    assert "choose another by CONVSERVE_GRPC_PORT" in str(address.grpc_problem("127.0.0.1", 3000, taken))
    assert "set BENTOML_HOST=0.0.0.0 in place of --host" in str(address.grpc_problem("0.0.0.0", 3000, taken))


def test_grpc_that_cannot_be_imported_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    assert address.grpc_problem("127.0.0.1", 3000, free_port()) is None
    monkeypatch.setitem(sys.modules, "grpc_health.v1.health_pb2", None)
    line = str(address.grpc_problem("127.0.0.1", 3000, free_port()))
    assert line.startswith("gRPC cannot be imported: import of grpc_health.v1.health_pb2 halted")
    assert "CONVSERVE_GRPC_PORT needs" in line
    assert "\n" not in line


def test_bentoml_listens_on_this_machine_alone_and_ends_with_one_line_on_a_taken_port(run: Run, taken: int) -> None:
    done = run("bentoml", "serve", "--port", str(taken), check=False, BENTOML_HOST="", CONVSERVE_RUNTIME="null")
    assert done.returncode != 0
    (line,) = [line for line in done.stderr.splitlines() + done.stdout.splitlines() if line]
    assert f"cannot listen on 127.0.0.1, port {taken}: Address already in use" in line
    assert "BENTOML_PORT" in line


def test_a_container_image_listens_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BENTOML_CONTAINERIZED", raising=False)
    assert address.default_host() == "127.0.0.1"
    monkeypatch.setenv("BENTOML_CONTAINERIZED", "true")
    assert address.default_host() == "0.0.0.0"


class Unready(BaseHTTPRequestHandler):
    """Server that is ready at its second answer."""

    answers = 0

    def do_GET(self) -> None:
        type(self).answers += 1
        self.send_response(200 if self.answers > 1 and self.path == "/readyz" else 503)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def test_ready_is_said_once_the_server_is_ready(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with HTTPServer(("127.0.0.1", 0), Unready) as other:
        thread = threading.Thread(target=other.serve_forever)
        thread.start()
        monkeypatch.setenv("BENTOML_PORT", str(other.server_port))
        monkeypatch.setenv("BENTOML_HOST", "0.0.0.0")
        address.main(["--ready"])
        other.shutdown()
        thread.join()
    assert Unready.answers == 2
    asking = f"curl --data-binary @docs/digit.png 'http://localhost:{other.server_port}/classify?"
    assert f"Ready. In another terminal:\n\n{asking}" in capsys.readouterr().out


def test_nothing_is_said_if_the_server_ends_first(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], taken: int
) -> None:
    monkeypatch.setenv("BENTOML_HOST", "127.0.0.2")
    monkeypatch.setenv("BENTOML_PORT", str(taken))
    parents = iter([10, 10, 1])
    monkeypatch.setattr(os, "getppid", lambda: next(parents))
    address.main(["--ready"])
    assert capsys.readouterr().out == ""
