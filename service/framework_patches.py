"""Changes to private parts of the frameworks, each with its reason and the library version it was written for.

A new version of a library may rename or remove such a part. Each change checks first that the part exists. If it does
not, the server ends at its start with one line, instead of serving without the change.
"""

from __future__ import annotations

import logging
import os
import warnings
from importlib import import_module
from importlib.metadata import version
from operator import attrgetter
from pathlib import Path
from typing import Any

from bentoml.exceptions import BentoMLException
from starlette.types import ASGIApp, Receive, Scope, Send

from service import address

logger = logging.getLogger("bentoml.convserve")
PILLOW_BLOCKS = 4  # of up to 16 MiB each: a photo of 12 megapixels has three; eight were no faster
BENTOML_PATHS = {"/livez", "/readyz", "/healthz", "/schema.json"}


def private(library: str, seen_in: str, module: str, attribute: str) -> Any:
    """Return a private attribute of a library. Raises SystemExit with one line if the attribute is gone."""
    try:
        return attrgetter(attribute)(import_module(module))
    except (ImportError, AttributeError) as error:
        raise SystemExit(
            f"error: {library} {version(library)} has no {module}.{attribute}, which convserve changes;"
            f" {library} {seen_in} has it"
        ) from error


def replace(library: str, seen_in: str, module: str, attribute: str, new: object) -> None:
    """Replace a private attribute of a library. Raises SystemExit if the attribute is gone."""
    private(library, seen_in, module, attribute)
    setattr(import_module(module), attribute, new)


def left_out(app: ASGIApp, **_: object) -> ASGIApp:
    """Return the application itself, in place of a middleware around the application."""
    return app


def route_past_bentoml(application: ASGIApp) -> None:
    """Let BentoML's last middleware call `application` at once for every path that is not BentoML's own.

    BentoML's router costs time on each request, and would only find the mounted application.
    """
    base = private("bentoml", "1.4.40", "_bentoml_impl.server.app", "ContextMiddleware")

    class RouteFirst(base):  # type: ignore[misc, valid-type]
        """Last middleware of BentoML's: passes requests to `application` without BentoML's router."""

        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            """Pass the request to `application`, or to BentoML for BentoML's own paths."""
            if scope["type"] == "http" and scope["path"] not in BENTOML_PATHS:
                await application(scope, receive, send)
            else:
                await super().__call__(scope, receive, send)

    replace("bentoml", "1.4.40", "_bentoml_impl.server.app", "ContextMiddleware", RouteFirst)


def leave_out_timeouts() -> None:
    """Remove BentoML's timeout, which cannot be configured away; the service's own deadlines bound each request.

    The timeout creates a task for each request and keeps the task in memory until the time has passed, even if the
    request was answered long before.
    """
    replace("bentoml", "1.4.40", "bentoml._internal.server.http.traffic", "TimeoutMiddleware", left_out)


def leave_out_tracing() -> None:
    """Remove the middleware that makes spans: each request would pay 0.1 ms even if no span is exported."""
    library, module = "opentelemetry-instrumentation-asgi", "opentelemetry.instrumentation.asgi"
    replace(library, "0.66b1", module, "OpenTelemetryMiddleware", left_out)


def use_http_protocol(name: str) -> None:
    """Let uvicorn serve HTTP by the class `name`; BentoML leaves the choice to uvicorn, after the service's import."""
    check_http_protocol()
    protocols = private("uvicorn", "0.54.0", "uvicorn.config", "HTTP_PROTOCOLS")
    protocols["auto"] = name


def use_event_loop(factory: str) -> None:
    """Let uvicorn run the event loop that `factory` returns the class of; BentoML leaves the choice to uvicorn."""
    factories = private("uvicorn", "0.54.0", "uvicorn.config", "LOOP_FACTORIES")
    factories["auto"] = factory


def check_http_protocol() -> None:
    """Raise SystemExit unless uvicorn has the private names that `http_limits` derives its connection from."""
    module = "uvicorn.protocols.http.httptools_impl"
    private("uvicorn", "0.54.0", module, "STATUS_LINE")
    connection = private("uvicorn", "0.54.0", module, "HttpToolsProtocol")
    for name in (
        "_unset_keepalive_if_required",
        "_should_upgrade",
        "on_message_begin",
        "on_url",
        "on_header",
        "on_headers_complete",
        "on_body",
        "on_message_complete",
        "send_400_response",
    ):
        if not hasattr(connection, name):
            raise SystemExit(f"error: uvicorn {version('uvicorn')} has no HttpToolsProtocol.{name}; 0.54.0 has it")


def check_address(grpc_port: int | None = None) -> None:
    """Let `bentoml serve` end with one line if it cannot listen, and say so if it listens on all interfaces.

    `grpc_port` is the port of gRPC, if any, on which the fronts will listen.

    Circus, of the package kantoku, would end with a traceback, and BentoML's log would say localhost.
    """
    base = private("kantoku", "0.18.3", "circus.sockets", "CircusSocket")
    listen = private("kantoku", "0.18.3", "circus.sockets", "CircusSocket.bind_and_listen")

    def bind_and_listen(socket: Any) -> None:
        """Bind the server's socket. Raises BentoMLException, which the command prints as one line."""
        if not socket.is_unix:
            problem = address.problem_of(socket.host, socket.port)
            if grpc_port and not problem:
                problem = address.grpc_problem(socket.host, socket.port, grpc_port)
            if problem:
                raise BentoMLException(problem)
        listen(socket)
        if not socket.is_unix and socket.host in address.ALL:
            logger.info("port %d is open on all network interfaces, not only on localhost", socket.port)

    base.bind_and_listen = bind_and_listen


def keep_metrics_in_memory() -> None:
    """Keep Prometheus' values in memory instead of BentoML's files. An update takes a third of the time.

    The files exist so that several processes can share values.
    """
    in_memory = private("prometheus_client", "0.26.0", "prometheus_client.values", "MutexValue")
    replace("prometheus_client", "0.26.0", "prometheus_client.values", "ValueClass", in_memory)


def share_metrics(folder: Path) -> None:
    """Keep Prometheus' values in files of this server's own folder; BentoML's is shared by all servers of a user."""
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(folder)
    in_files = private("prometheus_client", "0.26.0", "prometheus_client.values", "MultiProcessValue")
    replace("prometheus_client", "0.26.0", "prometheus_client.values", "ValueClass", in_files())


def silence_pillow() -> None:
    """Silence Pillow's warnings: `images` decides on such pictures.

    The filter is set once for the process, since warnings.catch_warnings is not safe in threads.
    """
    warnings.filterwarnings("ignore", module="PIL")


def keep_pillows_memory() -> None:
    """Let Pillow keep up to PILLOW_BLOCKS blocks of memory for the next pictures, unless `PILLOW_BLOCKS_MAX` is set.

    By default Pillow frees each picture's memory, and the system hands out zeroed pages for the next one: a photo of 12
    megapixels, served, took 51 ms of a core instead of 39, and two threads decoded 31 a second instead of 48.
    """
    set_blocks_max = private("pillow", "13.0.0", "PIL.Image", "core.set_blocks_max")
    if "PILLOW_BLOCKS_MAX" not in os.environ:  # Pillow has read the variable itself
        set_blocks_max(PILLOW_BLOCKS)


def tracer_provider() -> Any:
    """Return BentoML's provider of OpenTelemetry tracers, which has no public name."""
    container = private("bentoml", "1.4.40", "bentoml._internal.configuration.containers", "BentoMLContainer")
    if not hasattr(container, "tracer_provider"):
        raise SystemExit(f"error: bentoml {version('bentoml')} has no BentoMLContainer.tracer_provider; 1.4.40 has it")
    return container.tracer_provider.get()
