"""Routes of the Open Inference Protocol over HTTP, below /v2."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Depends, Request, Response
from pydantic import ValidationError

from service.context import ServerContext, Shared
from service.errors import Problem
from service.inference_protocol import models
from service.inference_protocol.inference import infer
from service.inference_protocol.json_codec import HEADER, LARGE, faults, parsed, response_of
from service.inference_protocol.schema import (
    IndexEntry,
    IndexRequest,
    InferenceRequest,
    InferenceResponse,
    ModelConfig,
    ModelMetadata,
    ModelReadiness,
    ProtocolError,
    RepositoryRequest,
    RequestPart,
    ServerLiveness,
    ServerMetadata,
    ServerReadiness,
    ServerStatistics,
    schema_of,
)
from service.inference_protocol.statistics import statistics
from service.inference_protocol.tensors import NO_SHARED_MEMORY, Received, invalid
from service.routes.models import admin

MODEL = "/v2/models/{name}"
VERSION = f"{MODEL}/versions/{{version}}"
INFER = "/infer"
Endpoint = TypeVar("Endpoint", bound=Callable[..., Any])
Part = TypeVar("Part", bound=RequestPart)

health = APIRouter()  # which needs no key, as /livez and /readyz do not
router = APIRouter()
refused = APIRouter(include_in_schema=False)


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the error responses of a route for OpenAPI."""
    return {status: {"model": ProtocolError} for status in statuses}


async def named(name: str) -> None:
    """Show the parameter of a route of a model in OpenAPI."""


async def versioned(name: str, version: str) -> None:
    """Show the parameters of a route of a model's version in OpenAPI."""


async def full_name(request: Request) -> str:
    """Return the name of the model in the path, with the version if the path has one."""
    return models.full_name(request.path_params["name"], request.path_params.get("version", ""))


Name = Annotated[str, Depends(full_name)]
PATHS: list[tuple[str, Callable[..., Any]]] = [(MODEL, named), (VERSION, versioned)]


def on_model(method: str, path: str, **options: Any) -> Callable[[Endpoint], Endpoint]:
    """Return a decorator for a route of a model, which has two paths: without the version, and with it."""

    def register(endpoint: Endpoint) -> Endpoint:
        for prefix, shown in PATHS:
            router.add_api_route(prefix + path, endpoint, methods=[method], dependencies=[Depends(shown)], **options)
        return endpoint

    return register


@health.get("/v2/health/live")
async def live() -> ServerLiveness:
    """Return that the server is live, as /livez does."""
    return ServerLiveness(live=True)


@health.get("/v2/health/ready", responses=errors(503))
async def ready(server: Shared) -> ServerReadiness:
    """Return that the server is ready, as /readyz does."""
    if reason := server.not_ready:
        raise Problem(503, "not_ready", reason)
    return ServerReadiness(ready=True)


@router.get("/v2", responses=errors(401))
async def metadata() -> ServerMetadata:
    """Return the name, the version and the extensions of the server."""
    return models.server_metadata()


@router.get("/v2/models/stats", responses=errors(401))
async def all_statistics(server: Shared) -> ServerStatistics:
    """Return the totals of every model."""
    return await statistics(server)


@on_model("GET", "", responses=errors(401, 404, 409))
async def model_metadata(name: Name, server: Shared) -> ModelMetadata:
    """Return the versions, inputs and outputs of a model."""
    return await models.metadata(server, name)


@on_model("GET", "/ready", responses=errors(401, 404, 409, 503))
async def model_ready(name: Name, server: Shared) -> ModelReadiness:
    """Return that a model is loaded; otherwise the status is 503."""
    found = await models.readiness(server, name)
    if not found.ready:
        detail = f"{found.name} is not loaded; a request that names the model loads it"
        raise Problem(503, "not_ready", detail)
    return found


@on_model("GET", "/config", responses=errors(401, 404, 409))
async def model_config(name: Name, server: Shared) -> ModelConfig:
    """Return the configuration of a model, as far as Triton's tools read it."""
    return await models.config(server, name)


@on_model("GET", "/stats", responses=errors(401, 404, 409))
async def model_statistics(name: Name, server: Shared) -> ServerStatistics:
    """Return the totals of each version of a model. Each count is of images."""
    return await statistics(server, name)


@on_model(
    "POST",
    INFER,
    response_model=InferenceResponse,
    responses=errors(400, 401, 404, 409, 413, 415, 422, 500, 503, 504)
    | {200: {"content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}}},
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {"schema": schema_of(InferenceRequest)},
                "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
            },
        }
    },
)
async def inference(request: Request, name: Name, server: Shared) -> Response:
    """Infer one image or several: files in the input `image`, or pixels in `pixels`.

    Tensors stand in JSON, or behind the JSON as binary data, whose header is Inference-Header-Content-Length.
    """
    return await answered(request, server, name)


async def answered(request: Request, server: ServerContext, name: str) -> Response:
    """Return the answer to a request for an inference. Raises Problem for a request that is wrong."""
    if encoding := request.headers.get("content-encoding"):
        detail = f"Content-Encoding: {encoding[:20]} is not supported; send the body uncompressed"
        raise Problem(415, "unsupported_encoding", detail, headers={"Connection": "close"})

    async def receive() -> Received:
        return await parsed(await body.read(request), request.headers.get(HEADER))

    with server.device.request(), server.bodies.hold() as body:
        return response_of(await infer(server, request.state, name, receive, request=request))


@router.post(
    "/v2/repository/index",
    responses=errors(400, 401, 413, 503, 504),
    openapi_extra={"requestBody": {"content": {"application/json": {"schema": schema_of(IndexRequest)}}}},
)
async def index(request: Request, server: Shared) -> list[IndexEntry]:
    """Return every published model with its state."""
    return await models.index(server, (await sent(request, server, IndexRequest)).ready)


REPOSITORY: Any = {
    "dependencies": [Depends(admin)],
    "responses": errors(400, 401, 403, 404, 409, 413, 503, 504),
    "openapi_extra": {"requestBody": {"content": {"application/json": {"schema": schema_of(RepositoryRequest)}}}},
}


@router.post("/v2/repository/models/{name}/load", **REPOSITORY)
async def load(request: Request, name: str, server: Shared) -> None:
    """Load a model, unless loaded already. Needs the administrator's token."""
    await models.load(server, name, list((await sent(request, server, RepositoryRequest)).parameters))


@router.post("/v2/repository/models/{name}/unload", **REPOSITORY)
async def unload(request: Request, name: str, server: Shared) -> None:
    """Unload a model. Needs the administrator's token."""
    await sent(request, server, RepositoryRequest)
    await models.unload(server, name)


async def sent(request: Request, server: ServerContext, kind: type[Part]) -> Part:
    """Return the JSON that a client has sent, or an empty request without a body. Raises Problem 400 or 413."""
    async with asyncio.timeout(server.settings.timeout_s):
        with server.bodies.hold() as body:
            text = await body.read(request)
    if len(text) > LARGE:
        raise Problem(413, "body_too_large", f"the JSON may have at most {LARGE:,} bytes")
    try:
        return kind.model_validate_json(text or b"{}")
    except ValidationError as error:
        raise invalid(faults(error)) from None


@refused.api_route("/v2/systemsharedmemory/{rest:path}", methods=["GET", "POST"])
@refused.api_route("/v2/cudasharedmemory/{rest:path}", methods=["GET", "POST"])
async def shared_memory(rest: str) -> None:
    """Refuse to share memory with a client: raise Problem 501."""
    raise Problem(501, "not_supported", NO_SHARED_MEMORY)
