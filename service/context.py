"""State that the routes share, API keys, and the handler of errors."""

from __future__ import annotations

from dataclasses import dataclass
from secrets import compare_digest
from typing import Annotated

from fastapi import Depends, Request, Response
from fastapi.security import APIKeyHeader
from opentelemetry.trace import Tracer
from pydantic import SecretStr

from service import errors, schema
from service.body import Bodies
from service.catalog import Catalog
from service.errors import Problem
from service.framework_patches import tracer_provider
from service.images import Decoders
from service.metrics import Metrics
from service.scheduler import Scheduler
from service.settings import Settings


@dataclass(frozen=True)
class ServerContext:
    """State shared by all routes of a process."""

    settings: Settings
    catalog: Catalog
    scheduler: Scheduler
    decoders: Decoders
    bodies: Bodies
    metrics: Metrics
    tracer: Tracer


def make_context(settings: Settings) -> ServerContext:
    """Build the shared state from the settings."""
    return ServerContext(
        settings=settings,
        catalog=Catalog(settings),
        scheduler=Scheduler(settings.max_waiting),
        decoders=Decoders(settings.decoders, settings.max_pixels),
        bodies=Bodies(settings.max_body_bytes, settings.max_bodies_bytes),
        metrics=Metrics(),
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


async def let_in(
    server: Shared, key: Annotated[str | None, Depends(APIKeyHeader(name="X-API-Key", auto_error=False))]
) -> None:
    """Raise Problem 401 unless the request has one of the configured API keys."""
    # Every key is compared, each in constant time, so that timing does not reveal which key was close.
    if not sum(same(key or "", known) for known in server.settings.api_keys):
        raise Problem(401, "unauthorized", "an API key is needed, as the header X-API-Key")


async def refuse(request: Request, error: Exception) -> Response:
    """Convert an error into a response and note its code for the request log.

    Errors of /classify and /compare are counted in the metrics.
    """
    problem = errors.as_problem(error)
    request.state.problem = problem.code
    if request.url.path in {"/classify", "/compare"}:
        server = await shared(request)
        server.metrics.failed(getattr(request.state, "tag", ""), problem.code)
    return problem.response()
