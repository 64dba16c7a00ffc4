"""Address on which the server listens: its default, a check that it is free, and a wait until the server is ready.

`python -m service.address` checks, `python -m service.address --ready` waits; `make serve` calls both.
"""

from __future__ import annotations

import errno
import http.client
import os
import socket
import sys
import time
from importlib import import_module
from ipaddress import ip_address

ALL = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # address of all interfaces: address of this machine  # noqa: S104
# Modules that gRPC needs; with packages that do not go together, importing one of them raises an error.
GRPC = ("grpc.aio", "grpc_health.v1.health_pb2", "grpc_reflection.v1alpha.reflection")
READY = """
Ready. In another terminal:

curl --data-binary @docs/digit.png '{url}/classify?model=lenet5&top_k=3'
"""


def default_host() -> str:
    """Return 127.0.0.1, or the address of all interfaces inside an image that `bentoml containerize` made."""
    return "0.0.0.0" if "BENTOML_CONTAINERIZED" in os.environ else "127.0.0.1"  # noqa: S104


def listening_host() -> str:
    """Return the address that BENTOML_HOST names, else the default."""
    return os.environ.get("BENTOML_HOST") or default_host()


def grpc_problem(host: str, http_port: int, port: int) -> str | None:
    """Return a line that says why gRPC cannot listen beside HTTP, which listens on `host`, or None if it can."""
    if port == http_port:
        return f"CONVSERVE_GRPC_PORT: {port} is the port of HTTP; choose another"
    if host != listening_host():
        return f"CONVSERVE_GRPC_PORT: gRPC listens where BENTOML_HOST says; set BENTOML_HOST={host} in place of --host"
    try:
        for module in GRPC:
            import_module(module)
    except Exception as error:  # protobuf raises errors of its own if a package was made for another version
        needed = "CONVSERVE_GRPC_PORT needs the versions of grpcio and protobuf that convserve was installed with"
        return f"gRPC cannot be imported: {' '.join(str(error).split())}; {needed}"
    return problem_of(host, port, "CONVSERVE_GRPC_PORT")


def problem_of(host: str, port: int, setting: str = "BENTOML_PORT") -> str | None:
    """Return a line that says why the server cannot listen on the address, or None if it can.

    `setting` is the variable that chooses the port.
    """
    try:
        family = socket.AF_INET6 if ip_address(host).version == 6 else socket.AF_INET
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server
            probe.bind((host, port))
            probe.listen()
    except ValueError:
        return f"BENTOML_HOST: {host!r} is no IP address"
    except OverflowError:
        return f"BENTOML_PORT: {port} is no port"
    except OSError as error:
        remedy = "BENTOML_HOST" if error.errno == errno.EADDRNOTAVAIL else setting
        return f"cannot listen on {host}, port {port}: {error.strerror}; choose another by {remedy}"
    return None


def main(arguments: list[str]) -> None:
    """Check the address of BENTOML_HOST and BENTOML_PORT, or wait for the server. Raises SystemExit with one line."""
    host, port = listening_host(), os.environ.get("BENTOML_PORT") or "3000"
    if not port.isdecimal():
        raise SystemExit(f"error: BENTOML_PORT: {port!r} is no port")
    if "--ready" in arguments:
        wait(ALL.get(host, host), int(port))
    elif problem := problem_of(host, int(port)):
        raise SystemExit(f"error: {problem}")


def wait(host: str, port: int) -> None:
    """Print how to ask the server once it is ready. Return without a word if the parent process, the server, ends."""
    server = os.getppid()
    while os.getppid() == server:
        if is_ready(host, port):
            name = {"127.0.0.1": "localhost", "::1": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
            print(READY.format(url=f"http://{name}:{port}"), flush=True)
            return
        time.sleep(0.2)


def is_ready(host: str, port: int) -> bool:
    """Return True if /readyz answers 200."""
    connection = http.client.HTTPConnection(host, port, timeout=5)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == http.client.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


if __name__ == "__main__":
    main(sys.argv[1:])
