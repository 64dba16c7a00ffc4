"""Start of a real server on a free port."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

ROOT = Path(__file__).parents[1]


@contextmanager
def serving(*arguments: str, cwd: Path = ROOT, **environment: str) -> Iterator[tuple[httpx.Client, int]]:
    """Start `bentoml serve`, wait until it is ready, and yield a client and the process id.

    Self-tuning would change engines while a test looks at the engines; it is off unless `environment` says otherwise.
    """
    port = free_port()
    command = [sys.executable, "-m", "bentoml", "serve", *arguments, "--host", "127.0.0.1", "--port", str(port)]
    with tempfile.TemporaryFile("w+") as log:  # not a pipe, which would fill up and stop the server
        process = subprocess.Popen(
            command, cwd=cwd, env=os.environ | {"CONVSERVE_TUNE": "off"} | environment, stdout=log, stderr=log
        )
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
                if not is_ready(client, process):
                    log.seek(0)
                    raise RuntimeError(f"the server did not become ready:\n{log.read()}")
                yield client, process.pid
        finally:
            process.terminate()
            process.wait(30)


def free_port() -> int:
    """Return a port of 127.0.0.1 that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def is_ready(client: httpx.Client, process: subprocess.Popen[bytes] | None, seconds: float = 60) -> bool:
    """Return True if /readyz answers 200 within `seconds`."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and not (process and process.poll() is not None):
        try:
            if client.get("/readyz").status_code == httpx.codes.OK:
                return True
        except httpx.TransportError:
            pass
        time.sleep(0.05)
    return False
