"""The routes."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from time import perf_counter
from typing import Annotated, Literal

import numpy as np
from fastapi import APIRouter, Depends, FastAPI, Query, Request, Response
from fastapi.responses import RedirectResponse
from fastapi_offline import FastAPIOffline
from numpy.typing import NDArray

from engines.engine import Engine
from engines.manifest import Manifest
from service import errors, schema
from service.body import read_image
from service.catalog import Catalog
from service.errors import Problem
from service.images import FORMATS, to_pixels
from service.metrics import Metrics
from service.scheduler import Overloaded, Scheduler
from service.settings import Settings

MAX_TOP_K = 1000
DESCRIPTION = "Every CNN architecture of a lecture, LeNet-5 to SENet-154: what each answers, costs and how fast it is."
IMAGE_BODY = {
    "required": True,
    "content": {
        **{f"image/{name.lower()}": {"schema": {"type": "string", "format": "binary"}} for name in sorted(FORMATS)},
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": ["image"],
                "properties": {"image": {"type": "string", "format": "binary"}},
            }
        },
    },
}


@dataclass
class Server:
    """What the routes share; one for each process."""

    settings: Settings
    catalog: Catalog
    scheduler: Scheduler
    metrics: Metrics = field(default_factory=Metrics)
    decoders: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(2, "decode"))


def create_api(server: Server) -> FastAPI:
    """The application over `server`; its documentation needs no network."""
    api = FastAPIOffline(title="convserve", description=DESCRIPTION, redoc_url=None)
    api.state.server = server
    api.include_router(router)
    errors.install(api, count)
    return api


def count(request: Request, problem: Problem) -> None:
    """Count what /classify answers with a problem."""
    if request.url.path == "/classify":
        server: Server = request.app.state.server
        server.metrics.failed(getattr(request.state, "tag", ""), problem.code)


async def shared(request: Request) -> Server:
    """The process's Server."""
    server: Server = request.app.state.server
    return server


Shared = Annotated[Server, Depends(shared)]


def problems(*statuses: int) -> dict[int | str, dict[str, object]]:
    """For OpenAPI: the errors a route may answer."""
    content = {errors.MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/ProblemDetails"}}}
    return {status: {"model": schema.ProblemDetails, "content": content} for status in statuses}


router = APIRouter()


@router.post(
    "/classify",
    responses=problems(400, 404, 409, 413, 415, 422, 500, 503, 504),
    openapi_extra={"requestBody": IMAGE_BODY},
)
async def classify(
    request: Request,
    response: Response,
    server: Shared,
    model: Annotated[str, Query(max_length=200, description="architecture, architecture@dataset or full tag")],
    top_k: Annotated[int, Query(ge=1, le=MAX_TOP_K, description="how many classes to answer, at most")] = 5,
    precision: Annotated[
        Literal["fp32", "bf16", "fp16", "int8"] | None, Query(description="an engine's; without, the server chooses")
    ] = None,
) -> schema.Classification:
    """Classify one image: the body is the image itself, or a form with a part `image`."""
    found = server.catalog.find(model)
    request.state.tag = found.manifest.tag
    seconds = server.settings.timeout_s
    try:
        async with asyncio.timeout(seconds):
            body = await read_image(request, server.settings.max_body_bytes)
            answer = await predict(server, await server.catalog.engine(found, precision), found.manifest, body, top_k)
    except TimeoutError as error:
        raise Problem(504, "timeout", f"no answer within {seconds:g} s", headers={"Connection": "close"}) from error
    stages = answer.timing_ms.model_dump()
    server.metrics.answered(answer.model, answer.batch_size, stages)
    response.headers["Server-Timing"] = ", ".join(f"{stage};dur={ms:.3f}" for stage, ms in stages.items())
    return answer


async def predict(server: Server, engine: Engine, manifest: Manifest, body: bytes, top_k: int) -> schema.Classification:
    """Decode off the event loop, wait for the device, name the classes."""
    loop, max_pixels = asyncio.get_running_loop(), server.settings.max_pixels
    started = perf_counter()
    pixels = await loop.run_in_executor(server.decoders, to_pixels, body, manifest.preprocess, max_pixels)
    decode_ms = (perf_counter() - started) * 1000
    try:
        answer = await server.scheduler.infer(engine, pixels)
    except Overloaded as error:
        raise Problem(503, "overloaded", str(error), headers={"Retry-After": "1"}) from error
    return schema.Classification(
        model=manifest.tag,
        runtime=engine.runtime,
        precision=engine.precision,
        predictions=top(answer.logits, manifest.labels, top_k),
        batch_size=answer.batch_size,
        timing_ms=schema.Timing(
            decode=round(decode_ms, 3), queue=round(answer.queue_ms, 3), inference=round(answer.inference_ms, 3)
        ),
    )


def top(logits: NDArray[np.float32], labels: tuple[str, ...], k: int) -> list[schema.Prediction]:
    """The `k` most probable classes, or all if there are fewer."""
    exponentials = np.exp(logits - logits.max())
    probabilities = exponentials / exponentials.sum()
    best = np.argsort(-logits, kind="stable")[:k].tolist()
    return [
        schema.Prediction(index=index, label=labels[index], probability=float(probabilities[index])) for index in best
    ]


@router.get("/", include_in_schema=False)
async def index() -> RedirectResponse:
    """What a browser that knows no route is shown."""
    return RedirectResponse("/docs")


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
    return schema.ModelComplexity(paper=paper, models=different)


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


@router.get("/metrics", response_class=Response)
async def metrics(server: Shared) -> Response:
    """For Prometheus."""
    return Response(server.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


def summary(server: Server, card: schema.Architecture) -> schema.ModelSummary:
    """A card with its cost and what is published of it, without the layers."""
    return schema.ModelSummary(**card.model_dump(exclude={"layers"}), models=published(server, card.name))


def published(server: Server, architecture: str) -> list[schema.PublishedModel]:
    """What is published of one architecture, and whether it is loaded."""
    return [
        schema.PublishedModel(
            tag=model.manifest.tag,
            dataset=model.manifest.dataset,
            accuracy=model.manifest.accuracy,
            status=model.status,
            runtime=model.engine.runtime if model.engine else None,
            precision=model.engine.precision if model.engine else None,
            error=model.error,
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
        for model in server.catalog.published(architecture)
    ]
