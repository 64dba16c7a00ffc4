"""Routes on models: architectures, published models, costs, latencies, and loading by an administrator."""

from __future__ import annotations

import asyncio
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Query
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from service import schema
from service.accuracy import compared
from service.architectures import with_layers
from service.context import ServerContext, Shared, check_admin, problems
from service.loading import ServedModel
from service.recent import percentiles
from service.select_model import expected_ms, front

router = APIRouter()


@router.get("/models", responses=problems(401))
async def models(server: Shared) -> list[schema.ModelSummary]:
    """Return every architecture with its published models."""
    await server.catalog.rescan()
    return [
        summary(server, card, server.catalog.published(card.name)) for card in server.catalog.architectures.values()
    ]


@router.get("/models/{name}", responses=problems(401, 404))
async def model_detail(name: str, server: Shared) -> schema.ModelSummary:
    """Return one architecture with its published models.

    `name` is an architecture, `architecture@dataset` or a full tag; the last two restrict the published models.
    """
    await server.catalog.rescan()
    return summary(server, *server.catalog.matching(name))


@router.get("/models/{name}/complexity", responses=problems(401, 404))
async def model_complexity(name: str, server: Shared) -> schema.ModelComplexity:
    """Return the cost of a forward pass, in total and layer by layer.

    `name` is an architecture, `architecture@dataset` or a full tag; the last two restrict the published models.
    """
    paper, published = await server.catalog.fresh(lambda: server.catalog.matching(name))
    own = {model.manifest.tag: model.manifest.complexity for model in published}
    at_paper = (paper.input_shape, paper.classes)
    different = {tag: cost for tag, cost in own.items() if (cost.input_shape, cost.classes) != at_paper}
    return schema.ModelComplexity(paper=await asyncio.to_thread(with_layers, paper), models=different)


@router.get("/models/{name}/latency", responses=problems(401, 404))
async def model_latency(name: str, server: Shared) -> schema.ModelLatency:
    """Return percentiles of recent requests by stage, and the benchmark of each engine.

    `name` is an architecture, `architecture@dataset` or a full tag; the last two restrict the published models.
    """
    _, published = await server.catalog.fresh(lambda: server.catalog.matching(name))
    figures = {}
    for model in published:
        recent = await server.device.recent(model)
        benchmark = [speed for record in model.records for speed in record.speeds]
        figures[model.manifest.tag] = schema.Latency.model_validate(
            {"requests": len(recent), "stages_ms": percentiles(recent), "benchmark": benchmark}
        )
    return schema.ModelLatency(models=figures)


@router.get("/pareto", responses=problems(401, 404))
async def pareto(server: Shared, requested: Annotated[str | None, Query(alias="dataset")] = None) -> schema.Pareto:
    """Return accuracy against multiply-accumulates, parameters and time, and the Pareto front of each.

    `dataset` is the data set that the weights were trained on, by default the server's, or the only one if no published
    model is of the server's. Only models whose accuracies are of one kind are compared.
    """
    dataset = await server.catalog.fresh(lambda: server.catalog.dataset(requested))
    comparables = compared(model for model in server.catalog.models.values() if model.manifest.dataset == dataset)
    points = [await pareto_point(server, model, rated) for model, rated in comparables.rated]
    loaded = [point for point in points if point.expected_ms is not None]
    fronts: dict[Literal["macs", "params", "latency"], list[schema.ParetoPoint]] = {
        "macs": front(points, lambda point: point.top1, lambda point: point.macs),
        "params": front(points, lambda point: point.top1, lambda point: point.params),
        "latency": front(loaded, lambda point: point.top1, lambda point: point.alone_ms or 0),
    }
    for point in points:
        point.front = [cost for cost, members in fronts.items() if point in members]
    return schema.Pareto(dataset=dataset, accuracy=comparables.kind, models=points, not_compared=comparables.left_out)


async def pareto_point(server: ServerContext, model: ServedModel, rated: schema.RatedModel) -> schema.ParetoPoint:
    """Return the point of a published model; `front` is still empty."""
    queue = model.chosen.queue
    live = percentiles(await server.device.recent(model))
    return schema.ParetoPoint(
        **vars(rated),
        params=model.manifest.complexity.params,
        alone_ms=1000 * queue.cost(1) if queue else None,
        expected_ms=expected_ms(server, queue) if queue else None,
        live_ms=live.get("inference"),
        front=[],
    )


async def admin(
    server: Shared, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(HTTPBearer(auto_error=False))]
) -> None:
    """Raise Problem 403 if no admin token is configured, 401 if the request has no token or a wrong one."""
    check_admin(server, credentials.credentials if credentials else "")


@router.post("/models/{name}/load", dependencies=[Depends(admin)], responses=problems(401, 403, 404, 409, 503))
async def load(name: str, server: Shared) -> schema.PublishedModelSummary:
    """Load the default engine of a model, unless loaded already."""
    model = await server.catalog.fresh(lambda: server.catalog.find(name))
    await server.device.queue(model)
    return published_model(server, model)


@router.post("/models/{name}/unload", dependencies=[Depends(admin)], responses=problems(401, 403, 404, 409))
async def unload(name: str, server: Shared) -> schema.PublishedModelSummary:
    """Unload all engines of a model; the next request for the model loads its engine again."""
    model = await server.catalog.fresh(lambda: server.catalog.find(name))
    await server.device.unload(model)
    return published_model(server, model)


def summary(server: ServerContext, card: schema.ArchitectureCard, published: list[ServedModel]) -> schema.ModelSummary:
    """Return an architecture's card with its total cost and the published models, without the layers."""
    return schema.ModelSummary(
        **vars(card),
        models=[published_model(server, model) for model in published],
        unserved=server.catalog.unserved(card.name),
    )


def published_model(server: ServerContext, model: ServedModel) -> schema.PublishedModelSummary:
    """Return a published model with its load status, its engines, and the state of self-tuning."""
    slot = model.chosen
    engine = slot.queue.engine if slot.queue else None
    return schema.PublishedModelSummary(
        tag=model.manifest.tag,
        dataset=model.manifest.dataset,
        accuracy=model.manifest.accuracy,
        published_accuracy=model.manifest.published,
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
        tuning=server.device.tuning(model),
    )
