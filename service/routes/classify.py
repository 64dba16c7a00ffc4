"""Routes that classify an image: /classify and /compare."""

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
TopK = Annotated[int, Field(ge=1, le=MAX_TOP_K, description="largest number of classes in the answer")]
DeadlineMs = Annotated[
    float | None,
    Field(gt=0, description="milliseconds after which an answer is useless; late requests are refused or ended"),
]


class ClassifyQuery(BaseModel):
    """Query parameters of a request to /classify."""

    model: Annotated[str, Field(max_length=200, description="architecture, architecture@dataset, full tag, or auto")]
    top_k: TopK = 5
    precision: Annotated[
        Literal["fp32", "bf16", "fp16", "int8"] | None,
        Field(description="precision of the engine; the server chooses by default"),
    ] = None
    deadline_ms: DeadlineMs = None
    max_latency_ms: Annotated[
        float | None, Field(gt=0, description="with auto: choose the most accurate model expected within it")
    ] = None
    min_accuracy: Annotated[
        float | None, Field(ge=0, le=1, description="with auto: lowest held-out top-1 accuracy")
    ] = None


router = APIRouter()


@router.post(
    "/classify",
    response_model=schema.Classification,
    responses=problems(400, 401, 404, 409, 413, 415, 422, 500, 503, 504),
    openapi_extra={"requestBody": IMAGE_BODY},
)
async def classify(request: Request, server: Shared, query: Annotated[ClassifyQuery, Query()]) -> Response:
    """Classify one image: the body is the image itself, or a form with a part `image`."""
    async with asyncio.timeout_at(deadline_of(server, query.deadline_ms)) as until:
        model, choice = model_for(server, query)
        request.state.tag = model.manifest.tag
        queue = await server.catalog.loader.queue(model, query.precision)
        with queue.in_use():
            (answer,) = await answers(server, request, [(model, queue)], query.top_k, until)
    if isinstance(answer, Exception):
        raise answer
    answer.choice = choice
    timing = ", ".join(f"{stage};dur={ms:.3f}" for stage, ms in answer.timing_ms)
    content = answer.model_dump_json(exclude_none=True)
    return Response(content, media_type="application/json", headers={"Server-Timing": timing})


def model_for(server: ServerContext, query: ClassifyQuery) -> tuple[ServedModel, schema.Choice | None]:
    """Return the requested or chosen model, and the choice of `auto`. Raises Problem 422 for conflicting parameters."""
    name, _, dataset = query.model.partition("@")
    if name == AUTO:
        if query.precision:
            raise Problem(422, "invalid_parameter", "with model=auto the server chooses the precision too")
        return choose_model(server, dataset or server.settings.dataset, query.max_latency_ms, query.min_accuracy)
    if query.max_latency_ms is not None or query.min_accuracy is not None:
        raise Problem(422, "invalid_parameter", "max_latency_ms and min_accuracy are for model=auto")
    return server.catalog.find(query.model), None


@router.post(
    "/compare",
    response_model_exclude_none=True,
    responses=problems(400, 401, 404, 409, 413, 415, 422, 500, 503, 504),
    openapi_extra={"requestBody": IMAGE_BODY},
)
async def compare(
    request: Request,
    server: Shared,
    models: Annotated[str, Query(max_length=2000, description=f"names separated by commas, at most {MAX_COMPARED}")],
    top_k: Annotated[TopK, Query()] = 5,
    deadline_ms: Annotated[DeadlineMs, Query()] = None,
) -> schema.Comparison:
    """Classify one image, decoded once, by several models, and return each model's answer and cost.

    If a model cannot be loaded, or fails in inference, its row holds a `problem` and the other models still answer.
    Every other error fails the whole request: an unknown name (404), a name without published weights (409), an image
    that cannot be decoded, or a deadline that one of the models is not expected to meet (422, 503).
    """
    names = list(dict.fromkeys(models.split(",")))
    if len(names) > MAX_COMPARED:
        raise Problem(422, "invalid_parameter", f"models: {len(names)} are too many; at most {MAX_COMPARED}")
    async with asyncio.timeout_at(deadline_of(server, deadline_ms)) as until:
        selected = list({model.manifest.tag: model for model in map(server.catalog.find, names)}.values())
        rows = [compared(model) for model in selected]
        loaded = []
        with ExitStack() as held:
            for model, row in zip(selected, rows, strict=True):
                try:
                    queue = await server.catalog.loader.queue(model)
                except Problem as problem:
                    failed(server, row, problem)
                else:
                    loaded.append((model, held.enter_context(queue.in_use())))
            results = await answers(server, request, loaded, top_k, until)
    loaded_rows = (row for row in rows if not row.problem)
    for row, (model, _), answer in zip(loaded_rows, loaded, results, strict=True):
        if isinstance(answer, Exception):
            failed(server, row, answer)
        else:
            accuracy = accuracy_of(model, answer.precision)
            row.answer, row.top1 = answer, accuracy.top1 if accuracy else None
    labels = {row.answer.predictions[0].label for row in rows if row.answer}
    return schema.Comparison(agree=len(labels) == 1, models=rows)


def compared(model: ServedModel) -> schema.Compared:
    """Return a model's row of a comparison, still without an answer."""
    manifest = model.manifest
    return schema.Compared(model=manifest.tag, macs=manifest.complexity.macs, params=manifest.complexity.params)


def failed(server: ServerContext, row: schema.Compared, error: Exception) -> None:
    """Put a model's error into its row and count the error; log it if it is an internal error."""
    problem = as_problem(error)
    row.problem = problem.details()
    server.metrics.failed(row.model, problem.code)
    if problem.status == HTTPStatus.INTERNAL_SERVER_ERROR:
        logger.error("%s: %s", row.model, error, exc_info=error)
