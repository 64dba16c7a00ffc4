"""Replicas behind a proxy: a real server on a port that it keeps when it is restarted, and a stand-in of one."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import psutil

from tests.serving import ROOT, free_port, is_ready

DRAIN_S = 2


class ServedReplica:
    """Server on one port: started, stopped by SIGTERM, and killed with all of its processes."""

    def __init__(self) -> None:
        self.port = free_port()
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed by `end`)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start, without waiting until the server is ready."""
        command = [sys.executable, "-m", "bentoml", "serve", "--host", "127.0.0.1", "--port", str(self.port)]
        environment = {"CONVSERVE_TUNE": "off", "CONVSERVE_RUNTIME": "openvino", "CONVSERVE_DRAIN_S": str(DRAIN_S)}
        self._process = subprocess.Popen(
            command, cwd=ROOT, env=os.environ | environment, stdout=self._log, stderr=self._log
        )

    def wait(self) -> None:
        """Wait until the server is ready."""
        with httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=30) as client:
            assert is_ready(client, None)

    def stop(self) -> None:
        """Stop as an operator does, and wait for the end."""
        assert self._process
        self._process.terminate()
        self._process.wait(30)

    def kill(self) -> None:
        """Kill all processes of the server at once."""
        assert self._process
        parent = psutil.Process(self._process.pid)
        for process in [parent, *parent.children(recursive=True)]:
            process.send_signal(signal.SIGKILL)
        self._process.wait(30)

    def end(self) -> None:
        """Stop, if the server still runs."""
        if self._process and self._process.poll() is None:
            self.stop()
        self._log.close()


class StandIn(ThreadingHTTPServer):
    """Replica that is ready, and answers each POST with 503, or closes the connection if `hangs_up`."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), StandInHandler)
        self.heads: list[dict[str, str]] = []  # of each POST
        self.hangs_up = False

    @property
    def port(self) -> int:
        """TCP port, an address of 127.0.0.1."""
        return int(self.server_address[1])


class StandInHandler(BaseHTTPRequestHandler):
    """Handler of the requests to a StandIn."""

    protocol_version = "HTTP/1.1"
    server: StandIn

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.server.heads.append({name.lower(): value for name, value in self.headers.items()})
        if self.server.hangs_up:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        body = b'{"code": "overloaded"}'
        self.send_response(503)
        self.send_header("Retry-After", "7")
        self.send_header("Content-Type", "application/problem+json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *_: object) -> None:  # noqa: A002 (http.server's name)
        """Leave requests out of the log of a test."""


@contextmanager
def stand_ins(count: int) -> Iterator[list[StandIn]]:
    """Yield stand-ins that answer in threads."""
    servers = [StandIn() for _ in range(count)]
    threads = [threading.Thread(target=server.serve_forever, args=[0.05]) for server in servers]
    for thread in threads:
        thread.start()
    try:
        yield servers
    finally:
        for server, thread in zip(servers, threads, strict=True):
            server.shutdown()
            thread.join()
            server.server_close()


def eventually(seconds: float) -> Iterator[None]:
    """Yield again and again for `seconds`, for a loop that ends when it has found what it looks for."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        yield
        time.sleep(0.05)
