"""Fixtures: digits as image files, the address of the real server, and the command `locust`."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from tests.conftest import Once, Run
from tests.serving import ROOT

Locust = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def images(run: Run, once: Once) -> Path:
    """Return a folder of a thousand digits, with one sub-folder per label."""
    return once("mnist5k", lambda folder: run("training", "images", "mnist5k", "--out", folder))


@pytest.fixture(scope="session")
def host(server: httpx.Client) -> str:
    """Return the address of the real server."""
    return str(server.base_url).rstrip("/")


@pytest.fixture(scope="session")
def locust(images: Path) -> Locust:
    """Return a function that runs `locust -f loadtest/locustfile.py` without its page, on these images."""

    def locust(host: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "locust", "-f", "loadtest/locustfile.py", "--headless", "--only-summary"]
        options = ["--host", host, "--images", images, *arguments]
        return subprocess.run(
            [*command, *map(str, options)], cwd=ROOT, env=os.environ, capture_output=True, text=True, check=False
        )

    return locust
