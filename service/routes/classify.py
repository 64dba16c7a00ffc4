"""Images in, classes out."""

from __future__ import annotations

import asyncio
import logging
from contextlib import ExitStack
from http import HTTPStatus
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, Field

from service import schema
from service.context import ServerContext, Shared, problems
from service.errors import Problem, as_problem
from service.images import FORMATS
from service.inference import answers, deadline_of
from service.loading import ServedModel
from service.select_model import AUTO, accuracy_of, choose_model

MAX_TOP_K = 1000
MAX_COMPARED = 16
logger = logging.getLogger("bentoml.convserve")

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
TopK = Annotated[int, Field(ge=1, le=MAX_TOP_K, description="how many classes to answer, at most")]
DeadlineMs = Annotated[
    float | None, Field(gt=0, description="refused, or given up, if it cannot be answered in so many milliseconds")
]


class Asked(BaseModel):
    """What a request to /classify asks for, beside its body."""

    model: Annotated[str, Field(max_length=200, description="architecture, architecture@dataset, full tag, or auto")]
    top_k: TopK = 5
    precision: Annotated[
        Literal["fp32", "bf16", "fp16", "int8"] | None, Field(description="an engine's; without, the server chooses")
    ] = None
    deadline_ms: DeadlineMs = None
    max_latency_ms: Annotated[float | None, Field(gt=0, description="with auto: the most accurate within it")] = None
    min_accuracy: Annotated[
        float | None, Field(ge=0, le=1, description="with auto: the fastest of such a held-out top-1")
    ] = None


router = APIRouter()


@router.post(
    "/classify",
    response_model=schema.Classification,
    responses=problems(400, 401, 404, 409, 413, 415, 422, 500, 503, 504),
    openapi_extra={"requestBody": IMAGE_BODY},
)
async def classify(request: Request, server: Shared, asked: Annotated[Asked, Query()]) -> Response:
    """Classify one image: the body is the image itself, or a form with a part `image`."""
    async with asyncio.timeout_at(deadline_of(server, asked.deadline_ms)) as until:
        found, choice = model_for(server, asked)
        request.state.tag = found.manifest.tag
        queue = await server.catalog.loader.queue(found, asked.precision)
        with queue.in_use():
            (answer,) = await answers(server, request, [(found, queue)], asked.top_k, until)
    if isinstance(answer, Exception):
        raise answer
    answer.choice = choice
    timing = ", ".join(f"{stage};dur={ms:.3f}" for stage, ms in answer.timing_ms)
    content = answer.model_dump_json(exclude_none=True)
    return Response(content, media_type="application/json", headers={"Server-Timing": timing})


def model_for(server: ServerContext, asked: Asked) -> tuple[ServedModel, schema.Choice | None]:
    """The model that was asked for, or was chosen, and why; Problem 422 if what is asked does not go together."""
    name, _, dataset = asked.model.partition("@")
    if name == AUTO:
        if asked.precision:
            raise Problem(422, "invalid_parameter", "with model=auto the server chooses the precision too")
        return choose_model(server, dataset or server.settings.dataset, asked.max_latency_ms, asked.min_accuracy)
    if asked.max_latency_ms is not None or asked.min_accuracy is not None:
        raise Problem(422, "invalid_parameter", "max_latency_ms and min_accuracy are for model=auto")
    return server.catalog.find(asked.model), None


@router.post(
    "/compare",
    response_model_exclude_none=True,
    responses=problems(400, 401, 404, 409, 413, 415, 422, 500, 503, 504),
    openapi_extra={"requestBody": IMAGE_BODY},
)
async def compare(
    request: Request,
    server: Shared,
    models: Annotated[str, Query(max_length=2000, description=f"names by commas, {MAX_COMPARED} at most")],
    top_k: Annotated[TopK, Query()] = 5,
    deadline_ms: Annotated[DeadlineMs, Query()] = None,
) -> schema.Comparison:
    """One image, decoded once: what each model makes of it, at what cost. One that fails does not fail the others."""
    names = list(dict.fromkeys(models.split(",")))
    if len(names) > MAX_COMPARED:
        raise Problem(422, "invalid_parameter", f"models: {len(names)} are too many; at most {MAX_COMPARED}")
    async with asyncio.timeout_at(deadline_of(server, deadline_ms)) as until:
        found = list({model.manifest.tag: model for model in map(server.catalog.find, names)}.values())
        rows = [compared(model) for model in found]
        asked = []
        with ExitStack() as held:
            for model, row in zip(found, rows, strict=True):
                try:
                    queue = await server.catalog.loader.queue(model)
                except Problem as problem:
                    failed(server, row, problem)
                else:
                    asked.append((model, held.enter_context(queue.in_use())))
            given = await answers(server, request, asked, top_k, until)
    waiting = (row for row in rows if not row.problem)
    for row, (model, _), answer in zip(waiting, asked, given, strict=True):
        if isinstance(answer, Exception):
            failed(server, row, answer)
        else:
            accuracy = accuracy_of(model, answer.precision)
            row.answer, row.top1 = answer, accuracy.top1 if accuracy else None
    labels = {row.answer.predictions[0].label for row in rows if row.answer}
    return schema.Comparison(agree=len(labels) == 1, models=rows)


def compared(model: ServedModel) -> schema.Compared:
    """A row of a comparison, without an answer yet."""
    entry = model.manifest
    return schema.Compared(model=entry.tag, macs=entry.complexity.macs, params=entry.complexity.params)


def failed(server: ServerContext, row: schema.Compared, error: Exception) -> None:
    """What kept a model from an answer: told, counted and, if it is the server's own fault, logged."""
    problem = as_problem(error)
    row.problem = problem.details()
    server.metrics.failed(row.model, problem.code)
    if problem.status == HTTPStatus.INTERNAL_SERVER_ERROR:
        logger.error("%s: %s", row.model, error, exc_info=error)
