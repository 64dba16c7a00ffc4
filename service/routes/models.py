"""What there is: architectures, what is published of them, what they cost, and how fast they are."""

from __future__ import annotations

import asyncio
from typing import Annotated, Literal

from fastapi import APIRouter, Depends
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from service import schema
from service.architectures import with_layers
from service.context import ServerContext, Shared, problems, same
from service.errors import Problem
from service.loading import ServedModel
from service.select_model import accuracy_of, comparable, front, options

router = APIRouter()


@router.get("/models")
async def models(server: Shared) -> list[schema.ModelSummary]:
    """Every architecture, with what is published of it."""
    return [summary(server, card) for card in server.catalog.architectures.values()]


@router.get("/models/{name}", responses=problems(404))
async def model_detail(name: str, server: Shared) -> schema.ModelSummary:
    """One architecture, with what is published of it."""
    return summary(server, server.catalog.architecture(name))


@router.get("/models/{name}/complexity", responses=problems(404))
async def model_complexity(name: str, server: Shared) -> schema.ModelComplexity:
    """What a forward pass costs, in all and layer by layer."""
    paper = server.catalog.architecture(name)
    own = {model.manifest.tag: model.manifest.complexity for model in server.catalog.published(name)}
    at_paper = (paper.input_shape, paper.classes)
    different = {tag: cost for tag, cost in own.items() if (cost.input_shape, cost.classes) != at_paper}
    return schema.ModelComplexity(paper=await asyncio.to_thread(with_layers, paper), models=different)


@router.get("/models/{name}/latency", responses=problems(404))
async def model_latency(name: str, server: Shared) -> schema.ModelLatency:
    """How long recent requests took, by stage, and what the benchmark found of each engine."""
    server.catalog.architecture(name)
    figures = {}
    for model in server.catalog.published(name):
        requests, stages = server.metrics.percentiles(model.manifest.tag)
        benchmark = [speed for record in model.records for speed in record.speeds]
        figures[model.manifest.tag] = schema.Latency.model_validate(
            {"requests": requests, "stages_ms": stages, "benchmark": benchmark}
        )
    return schema.ModelLatency(models=figures)


@router.get("/pareto", responses=problems(401))
async def pareto(server: Shared, dataset: str | None = None) -> schema.Pareto:
    """Accuracy against multiply-accumulates, parameters and time: which models nothing else beats.

    `dataset` is that of the weights; without, the server's default.
    """
    dataset = dataset or server.settings.dataset
    published = comparable(model for model in server.catalog.models.values() if model.manifest.dataset == dataset)
    points = [point for model in published if (point := pareto_point(server, model))]
    expected = {option.model.manifest.tag: option.expected_ms for option in options(server, dataset)}
    for one in points:
        one.expected_ms = expected.get(one.model)
    loaded = [one for one in points if one.expected_ms is not None]
    on: dict[Literal["macs", "params", "latency"], list[schema.ParetoPoint]] = {
        "macs": front(points, lambda one: one.top1, lambda one: one.macs),
        "params": front(points, lambda one: one.top1, lambda one: one.params),
        "latency": front(loaded, lambda one: one.top1, lambda one: one.alone_ms or 0),
    }
    for one in points:
        one.front = [cost for cost, found in on.items() if one in found]
    return schema.Pareto(dataset=dataset, models=points)


def pareto_point(server: ServerContext, model: ServedModel) -> schema.ParetoPoint | None:
    """One published model; None if no held-out accuracy of it is known."""
    entry, queue = model.manifest, model.chosen.queue
    precision = queue.engine.precision if queue else "fp32"
    accuracy = accuracy_of(model, precision)
    if not accuracy:
        return None
    _, live = server.metrics.percentiles(entry.tag)
    return schema.ParetoPoint(
        model=entry.tag,
        precision=precision,
        top1=accuracy.top1,
        images=accuracy.images,
        macs=entry.complexity.macs,
        params=entry.complexity.params,
        alone_ms=1000 * queue.cost(1) if queue else None,
        expected_ms=None,
        live_ms=live.get("inference"),
        front=[],
    )


async def admin(
    server: Shared, given: Annotated[HTTPAuthorizationCredentials | None, Depends(HTTPBearer(auto_error=False))]
) -> None:
    """Problem 403 if there is no admin token, 401 if another was given."""
    token = server.settings.admin_token
    if token is None:
        raise Problem(403, "admin_off", "models are loaded and unloaded by hand only if CONVSERVE_ADMIN_TOKEN is set")
    if not given or not same(given.credentials, token):
        headers = {"WWW-Authenticate": "Bearer"}
        raise Problem(401, "unauthorized", "the admin's token is needed, as a bearer's", headers=headers)


@router.post("/models/{name}/load", dependencies=[Depends(admin)], responses=problems(401, 403, 404, 409, 503))
async def load(name: str, server: Shared) -> schema.PublishedModelSummary:
    """Load a model's engine, if it is not loaded."""
    model = server.catalog.find(name)
    await server.catalog.loader.queue(model)
    return published_model(model)


@router.post("/models/{name}/unload", dependencies=[Depends(admin)], responses=problems(401, 403, 404, 409))
async def unload(name: str, server: Shared) -> schema.PublishedModelSummary:
    """Let a model's engines go; the next request for it loads it again."""
    model = server.catalog.find(name)
    server.catalog.loader.unload(model)
    return published_model(model)


def summary(server: ServerContext, card: schema.ArchitectureCard) -> schema.ModelSummary:
    """A card with its cost and what is published of it, without the layers."""
    return schema.ModelSummary(**vars(card), models=published(server, card.name))


def published(server: ServerContext, architecture: str) -> list[schema.PublishedModelSummary]:
    """What is published of one architecture, and whether it is loaded."""
    return [published_model(model) for model in server.catalog.published(architecture)]


def published_model(model: ServedModel) -> schema.PublishedModelSummary:
    """One of them."""
    slot = model.chosen
    engine = slot.queue.engine if slot.queue else None
    return schema.PublishedModelSummary(
        tag=model.manifest.tag,
        dataset=model.manifest.dataset,
        accuracy=model.manifest.accuracy,
        status=slot.status,
        runtime=engine.runtime if engine else None,
        precision=engine.precision if engine else None,
        memory_mb=round(slot.memory_mb, 1) if engine else None,
        error=slot.error,
        engines=[
            schema.EngineSummary(
                runtime=record.runtime,
                precision=record.precision,
                problem=record.problem,
                fidelity=record.fidelity,
                benchmark=list(record.speeds),
            )
            for record in model.records
        ],
    )
