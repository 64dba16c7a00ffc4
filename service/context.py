"""State that the routes share, API keys, and the handler of errors."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from http import HTTPStatus
from math import inf
from pathlib import Path
from secrets import compare_digest
from typing import Annotated

from fastapi import Depends, Request, Response
from fastapi.responses import JSONResponse
from fastapi.security import APIKeyHeader, HTTPBearer
from opentelemetry.trace import Tracer
from pydantic import SecretStr
from starlette.datastructures import Headers, State

from service import errors, schema
from service.admission import Admission
from service.body import Bodies
from service.catalog import Catalog
from service.clients import Clients, current
from service.device import Device, LocalDevice
from service.errors import Problem
from service.framework_patches import tracer_provider
from service.images import Decoders
from service.metrics import Metrics
from service.refusals import Refusals
from service.remote import RemoteDevice
from service.settings import Settings
from service.traffic_split import TrafficSplits

MAX_NAME = 100  # characters of an unknown parameter's name in an error


@dataclass(frozen=True)
class ServerContext:
    """State shared by all routes of a process."""

    settings: Settings
    catalog: Catalog
    device: Device
    decoders: Decoders
    bodies: Bodies
    clients: Clients
    splits: TrafficSplits
    refusals: Refusals
    metrics: Metrics
    tracer: Tracer
    leaving: asyncio.Event = field(default_factory=asyncio.Event)  # set once the process is about to stop

    @property
    def scheduler(self) -> Admission:
        """Admission to the device's queues."""
        return self.device.admission

    @property
    def not_ready(self) -> str | None:
        """Reason why requests should not be routed to this process, or None."""
        return "about to stop" if self.leaving.is_set() else self.device.problem or self.nothing_readable

    @property
    def nothing_readable(self) -> str | None:
        """Error if there are published models and the server cannot serve any of them, else None."""
        if self.catalog.models or not (unserved := self.catalog.unserved()):
            return None
        return f"no published model can be served: {'; '.join(unserved)}"


def make_context(settings: Settings, shared_metrics: Path | None = None) -> ServerContext:
    """Build the shared state of a process with a device; `shared_metrics` is the folder of the server's metrics."""
    catalog, metrics = Catalog(settings), Metrics(shared_metrics)
    return with_device(settings, catalog, metrics, LocalDevice(settings, catalog, metrics), shared_metrics)


def make_front(settings: Settings, devices: Sequence[Path], shared_metrics: Path) -> ServerContext:
    """Build the shared state of a front, whose devices are processes that listen on these sockets."""
    catalog = Catalog(settings)
    device = RemoteDevice(settings, catalog, devices)
    return with_device(settings, catalog, Metrics(shared_metrics), device, shared_metrics)


def with_device(
    settings: Settings, catalog: Catalog, metrics: Metrics, device: Device, folder: Path | None
) -> ServerContext:
    """Build the shared state around a device; `folder` is that in which several processes of a server meet."""
    return ServerContext(
        settings=settings,
        catalog=catalog,
        device=device,
        decoders=Decoders(settings.decoders, settings.max_pixels),
        bodies=Bodies(settings.max_body_bytes, settings.max_bodies_bytes),
        splits=TrafficSplits(settings.routes),
        clients=Clients(settings.clients, folder / "clients" if folder else None),
        refusals=Refusals(device.admission.clock),
        metrics=metrics,
        tracer=tracer_provider().get_tracer("convserve"),
    )


async def shared(request: Request) -> ServerContext:
    """Return the shared state of the process."""
    server: ServerContext = request.app.state.server
    return server


Shared = Annotated[ServerContext, Depends(shared)]


def problems(*statuses: int) -> dict[int | str, dict[str, object]]:
    """Return the error responses of a route for OpenAPI."""
    content = {errors.MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/ProblemDetails"}}}
    return {status: {"model": schema.ProblemDetails, "content": content} for status in statuses}


def same(value: str, secret: SecretStr) -> bool:
    """Compare a value with a secret in constant time, so that timing does not reveal a partial match."""
    return compare_digest(value.encode(), secret.get_secret_value().encode())


def bearer(headers: Headers) -> str:
    """Return the bearer token of a request, or an empty text without one."""
    scheme, _, token = headers.get("Authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


def let_in(server: ServerContext, headers: Headers, state: State) -> None:
    """Raise Problem 401 unless the request has a configured API key, a client's key, or the administrator's token.

    Each may stand in the header X-API-Key or be a bearer token. Raises LimitReached for a client that has used up a
    limit; the task knows the client from now on, and `state` the name for the log.
    """
    presented = [headers.get("X-API-Key", "").strip(), bearer(headers)]
    if client := server.clients.find(presented):
        current.set(client)
        state.client = client.name
        client.admit(server.scheduler.clock())
        return
    known = [*server.settings.api_keys, *filter(None, [server.settings.admin_token])]
    # Every key is compared, each in constant time, so that timing does not reveal which key was close.
    if not sum(same(value, secret) for value in presented for secret in known):
        detail = "an API key is needed, as the header X-API-Key or as a bearer token"
        raise Problem(401, "unauthorized", detail, headers={"WWW-Authenticate": "Bearer"})
    current.set(server.clients.by_number[0])


def check_admin(server: ServerContext, token: str) -> None:
    """Raise Problem 403 if no admin token is configured, 401 if the request's token is another, or empty."""
    configured = server.settings.admin_token
    if configured is None:
        raise Problem(403, "admin_off", "loading and unloading by request needs CONVSERVE_ADMIN_TOKEN to be set")
    if not same(token, configured):
        headers = {"WWW-Authenticate": "Bearer"}
        raise Problem(401, "unauthorized", "the admin token is needed, as a bearer token", headers=headers)


KEYS = (APIKeyHeader(name="X-API-Key", auto_error=False), HTTPBearer(auto_error=False))


async def needs_key(
    server: Shared, request: Request, _: Annotated[object, Depends(KEYS[0])], __: Annotated[object, Depends(KEYS[1])]
) -> None:
    """Raise Problem 401 as `let_in` does; as a dependency of a route, show both ways to send a key in OpenAPI."""
    let_in(server, request.headers, request.state)


def check_parameters(given: Iterable[str], known: Sequence[str]) -> None:
    """Raise Problem 422 `invalid_parameter` with a similar name if a query parameter is not `known`."""
    for name in given:
        if name not in known:
            near = get_close_matches(name.lower(), known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}" if known else ""
            detail = "; ".join(filter(None, [f"{name[:MAX_NAME]}: there is no such parameter", hint]))
            raise Problem(422, "invalid_parameter", detail, near=near)


async def known_parameters(request: Request) -> None:
    """Raise Problem 422 if the request has a query parameter that OpenAPI does not list for the route."""
    if request.query_params:
        operation = request.app.openapi()["paths"][request.scope["route"].path][request.method.lower()]
        known = [item["name"] for item in operation.get("parameters", []) if item["in"] == "query"]
        check_parameters(request.query_params, known)


async def refuse(request: Request, error: Exception) -> Response:
    """Convert an error into a response, as `noted` does; below /v2 in the form of the Open Inference Protocol."""
    path, server = request.url.path, await shared(request)
    problem = await noted(server, request.state, error, counted=counts_images(path))
    if path == "/v2" or path.startswith("/v2/"):
        return JSONResponse({"error": problem.detail}, problem.status, problem.headers)
    return problem.response()


def counts_images(path: str) -> bool:
    """Return True for the path of a route whose images are counted in the metrics."""
    return path in {"/classify", "/compare", "/explain"} or (path.startswith("/v2/models/") and path.endswith("/infer"))


async def noted(server: ServerContext, state: State, error: Exception, *, counted: bool) -> Problem:
    """Return the problem of an error, and note its code for the request log. A refusal waits for its turn.

    With `counted` the problem counts in the metrics, unless each image of the request was counted.
    """
    problem = errors.as_problem(error)
    state.problem = problem.code
    if problem.status == HTTPStatus.SERVICE_UNAVAILABLE:
        await server.refusals.turn(getattr(state, "deadline", inf))
    if counted and not getattr(state, "counted", False):
        server.metrics.failed(getattr(state, "tag", ""), problem.code)
    return problem
