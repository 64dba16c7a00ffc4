"""Methods of the Open Inference Protocol over gRPC, but for the inference: each returns the answer to a message."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from pydantic import BaseModel

from service.context import ServerContext
from service.inference_protocol import models
from service.inference_protocol.models import full_name
from service.inference_protocol.statistics import statistics

Answered = BaseModel | dict[str, Any]


async def server_live(server: ServerContext, message: Any) -> Answered:
    """Return that the server is live."""
    return {"live": True}


async def server_ready(server: ServerContext, message: Any) -> Answered:
    """Return True if the server is ready."""
    return {"ready": server.not_ready is None}


async def server_metadata(server: ServerContext, message: Any) -> Answered:
    """Return the name, the version and the extensions of the server."""
    return models.server_metadata()


async def model_ready(server: ServerContext, message: Any) -> Answered:
    """Return True if the model is loaded."""
    found = await models.readiness(server, full_name(message.name, message.version))
    return {"ready": found.ready}


async def model_metadata(server: ServerContext, message: Any) -> Answered:
    """Return the versions, inputs and outputs of a model."""
    return await models.metadata(server, full_name(message.name, message.version))


async def model_config(server: ServerContext, message: Any) -> Answered:
    """Return the configuration of a model."""
    found = await models.config(server, full_name(message.name, message.version))
    return {"config": found.model_dump()}


async def model_statistics(server: ServerContext, message: Any) -> Answered:
    """Return the totals of each version of a model, or without a name of every model."""
    return await statistics(server, full_name(message.name, message.version))


async def repository_index(server: ServerContext, message: Any) -> Answered:
    """Return every published model with its state."""
    return {"models": [entry.model_dump() for entry in await models.index(server, message.ready)]}


async def repository_model_load(server: ServerContext, message: Any) -> Answered:
    """Load a model, unless loaded already."""
    await models.load(server, message.model_name, list(message.parameters))
    return {}


async def repository_model_unload(server: ServerContext, message: Any) -> Answered:
    """Unload all engines of a model."""
    await models.unload(server, message.model_name)
    return {}


METHODS: dict[str, Callable[[ServerContext, Any], Awaitable[Answered]]] = {
    "ServerLive": server_live,
    "ServerReady": server_ready,
    "ServerMetadata": server_metadata,
    "ModelReady": model_ready,
    "ModelMetadata": model_metadata,
    "ModelConfig": model_config,
    "ModelStatistics": model_statistics,
    "RepositoryIndex": repository_index,
    "RepositoryModelLoad": repository_model_load,
    "RepositoryModelUnload": repository_model_unload,
}
OPEN = {"ServerLive", "ServerReady"}  # methods that need no key, as /livez and /readyz do not
ADMIN = {"RepositoryModelLoad", "RepositoryModelUnload"}  # methods that need the administrator's token
SHARED_MEMORY = {
    f"{kind}SharedMemory{verb}" for kind in ("System", "Cuda") for verb in ("Status", "Register", "Unregister")
}
