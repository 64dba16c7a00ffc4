"""Start of Debian's HAProxy and nginx with the project's configurations, changed only in addresses and paths."""

from __future__ import annotations

import os
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple

import pytest

from tests.serving import ROOT, free_port

PROXY = ROOT / "deploy" / "proxy"
PROGRAMS = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin"])


class Proxy(NamedTuple):
    """Running proxy: its address, the certificate to trust, its log, and the command that reloads its configuration."""

    url: str
    trusted: ssl.SSLContext
    log: Path
    replicas: Path
    reload: Sequence[str]


def program(name: str) -> str:
    """Return the path of a program; skip the test where it is not installed."""
    path = shutil.which(name, path=PROGRAMS)
    if path is None:
        pytest.skip(f"{name} is not installed: apt install {name}")
    return path


def certificate(folder: Path) -> ssl.SSLContext:
    """Write `key.pem`, `cert.pem`, and both in `both.pem`, and return a context that trusts the certificate."""
    command = [
        program("openssl"),
        "req",
        "-x509",
        "-nodes",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
    ]
    command += ["-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost"]
    command += ["-keyout", f"{folder}/key.pem", "-out", f"{folder}/cert.pem"]
    subprocess.run(command, check=True, capture_output=True)
    (folder / "both.pem").write_text((folder / "cert.pem").read_text() + (folder / "key.pem").read_text())
    return ssl.create_default_context(cafile=str(folder / "cert.pem"))


@contextmanager
def haproxy(folder: Path, replicas: Sequence[int]) -> Iterator[Proxy]:
    """Start HAProxy before replicas on three ports of 127.0.0.1."""
    executable, trusted, port = program("haproxy"), certificate(folder), free_port()
    environment = os.environ | {f"PROXY_REPLICA_{n}": f"127.0.0.1:{own}" for n, own in enumerate(replicas, 1)}
    environment |= {"PROXY_BIND": f"127.0.0.1:{port}", "PROXY_CERTIFICATE": str(folder / "both.pem")}
    configuration = str(PROXY / "haproxy.cfg")
    checked = subprocess.run(
        [executable, "-c", "-f", configuration], env=environment, capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stderr + checked.stdout
    log = folder / "log"
    with log.open("w") as out, running([executable, "-db", "-f", configuration], port, out, environment):
        yield Proxy(f"https://127.0.0.1:{port}", trusted, log, folder, ())


@contextmanager
def nginx(folder: Path, replicas: Sequence[int]) -> Iterator[Proxy]:
    """Start nginx before replicas on three ports of 127.0.0.1."""
    executable, trusted, port = program("nginx"), certificate(folder), free_port()
    text = (PROXY / "nginx.conf").read_text()
    bodies = [f"    {kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")]
    changes = {
        "worker_processes auto;": "worker_processes 2;\n" + ("user root;" if os.geteuid() == 0 else ""),
        "/run/nginx.pid": f"{folder}/pid",
        "/var/log/nginx/error.log": f"{folder}/errors",
        "/var/log/nginx/access.log": f"{folder}/log",
        "listen 443": f"listen 127.0.0.1:{port}",
        "/etc/nginx/convserve.crt": f"{folder}/cert.pem",
        "/etc/nginx/convserve.key": f"{folder}/key.pem",
        "\nhttp {\n": "\nhttp {\n" + "\n".join(bodies) + "\n",
    }
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    (folder / "nginx.conf").write_text(text)
    lines = (PROXY / "replicas.conf").read_text()
    for number, own in enumerate(replicas, 1):
        lines = lines.replace(f"10.0.0.{number}:3000", f"127.0.0.1:{own}")
    (folder / "replicas.conf").write_text(lines)
    command = [executable, "-e", f"{folder}/errors", "-p", str(folder), "-c", str(folder / "nginx.conf")]
    checked = subprocess.run([*command, "-t"], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr
    reload = [*command, "-s", "reload"]
    with running([*command, "-g", "daemon off;"], port, None, dict(os.environ)):
        yield Proxy(f"https://127.0.0.1:{port}", trusted, folder / "log", folder / "replicas.conf", reload)


@contextmanager
def running(command: Sequence[str], port: int, out: IO[str] | None, environment: dict[str, str]) -> Iterator[None]:
    """Start a program, wait until it listens on a port, and end it afterwards."""
    with subprocess.Popen(command, env=environment, stdout=out, stderr=out) as process:
        try:
            deadline = time.monotonic() + 10
            while not listens(port):
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.05)
            yield
        finally:
            process.terminate()
            process.wait(30)


def listens(port: int) -> bool:
    """Return True if something accepts connections on a port of 127.0.0.1."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


STARTS = {"haproxy": haproxy, "nginx": nginx}
