"""Routes that classify an image: /classify and /compare."""

from __future__ import annotations

import asyncio
import logging
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, Field

from engines.published.imagenet import IMAGENET
from service import schema
from service.accuracy import accuracy_of
from service.admission import EngineQueue
from service.context import ServerContext, Shared, problems
from service.errors import Problem, as_problem, worst_of
from service.image_forms import images_of, shape_of
from service.images import FORMATS
from service.inference import ImageAnswer, answers, answers_read, classification, deadline_of, top
from service.loading import ServedModel, check_precision
from service.select_model import AUTO, choose_model
from service.several_images import check, infer_read

MAX_TOP_K = 1000
MAX_COMPARED = 16
LOADING_SHARE = 0.75  # part of a comparison's time that may pass until its models are loaded
logger = logging.getLogger("bentoml.convserve")

FILE: dict[str, Any] = {"type": "string", "format": "binary"}
TEXTS = {"type": "array", "minItems": 1, "items": {"type": "string", "contentEncoding": "base64"}}


def object_with(name: str, value: dict[str, Any]) -> dict[str, Any]:
    """Return the JSON schema of a body with one required member."""
    return {"schema": {"type": "object", "required": [name], "properties": {name: value}}}


IMAGES: dict[str, Any] = {f"image/{name.lower()}": {"schema": FILE} for name in sorted(FORMATS)}
IMAGE_BODY = {"required": True, "content": IMAGES | {"multipart/form-data": object_with("image", FILE)}}
IMAGES_BODY = {
    "required": True,
    "content": IMAGES
    | {
        "multipart/form-data": object_with("image", {"type": "array", "minItems": 1, "items": FILE}),
        "application/json": object_with("images", TEXTS),
        "application/octet-stream": {"schema": FILE},
    },
}
X_SHAPE = {
    "name": "X-Shape",
    "in": "header",
    "description": "the body is raw pixels, as the model's graph takes them: height,width,channels, or n before these",
    "schema": {"type": "string", "examples": ["32,32,1"]},
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
    response_model=schema.Classification | schema.Classifications,
    responses=problems(400, 401, 404, 409, 413, 415, 422, 500, 503, 504),
    openapi_extra={"requestBody": IMAGES_BODY, "parameters": [X_SHAPE]},
)
async def classify(request: Request, server: Shared, query: Annotated[ClassifyQuery, Query()]) -> Response:
    """Classify one image, or several: the body is the image itself, a form, JSON with base64, or raw pixels.

    A form with one part `image` has the answer of one image. With several, as with JSON, `images` has an answer or a
    problem for each, in order. If there is no answer, the request fails with the problem of the highest status, whose
    member `images` holds the problems.
    """
    with server.device.request():
        return await classified(request, server, query)


async def classified(request: Request, server: ServerContext, query: ClassifyQuery) -> Response:
    """Return the answer to a request to /classify."""
    request.state.deadline = deadline = deadline_of(server, query.deadline_ms)
    async with asyncio.timeout_at(deadline) as until:
        model, choice = await server.catalog.fresh(lambda: model_for(server, query))
        request.state.tag = model.manifest.tag
        queue = await server.device.queue(model, query.precision)
        shape = shape_of(request, model)
        several = shape is None or len(shape) > 3
        with queue.in_use(), server.bodies.hold() as held:
            check(server, model, queue, until, shape[0] if shape and several else 1, 0 if shape else None)
            body = await held.read(request)
            images = await images_of(request, body, shape, server.settings.images_at_most)
            if images is None:
                (answer,) = await answers_read(server, request, [(model, queue)], [None], body, query.top_k, until)
            else:
                results = await infer_read(server, model, queue, images, until, request)
                request.state.counted = True
                if several:
                    return of_several(model, queue, results, query.top_k, choice)
                answer = of_one(model, queue, results[0], query.top_k)
    if isinstance(answer, Exception):
        raise answer
    answer.choice = choice
    timing = ", ".join(f"{stage};dur={ms:.3f}" for stage, ms in answer.timing_ms)
    content = answer.model_dump_json(exclude_none=True)
    return Response(content, media_type="application/json", headers={"Server-Timing": timing})


def of_one(
    model: ServedModel, queue: EngineQueue, result: ImageAnswer | Problem, top_k: int
) -> schema.Classification | Exception:
    """Return the answer to the one image of a request, or the image's problem."""
    return result if isinstance(result, Problem) else classification(model, queue.engine, result, top_k)


def of_several(
    model: ServedModel,
    queue: EngineQueue,
    results: list[ImageAnswer | Problem],
    top_k: int,
    choice: schema.Choice | None,
) -> Response:
    """Return the response to a request of several images. Raises Problem if each image has one."""

    def shown(result: ImageAnswer | Problem) -> schema.ImagePredictions | schema.ProblemDetails:
        if isinstance(result, Problem):
            return result.details()
        predictions, superclasses = top(result.logits, model.manifest, top_k)
        return schema.ImagePredictions(
            predictions=predictions,
            superclasses=superclasses,
            batch_size=result.batch_size,
            timing_ms=result.timing_ms,
        )

    images = [shown(result) for result in results]
    problems = [result for result in results if isinstance(result, Problem)]
    if len(problems) == len(results):
        raise worst_of(problems, images=[image.model_dump() for image in images])
    answer = schema.Classifications(
        model=model.manifest.tag,
        runtime=queue.engine.runtime,
        precision=queue.engine.precision,
        images=images,
        choice=choice,
    )
    return Response(answer.model_dump_json(exclude_none=True), media_type="application/json")


def model_for(server: ServerContext, query: ClassifyQuery) -> tuple[ServedModel, schema.Choice | None]:
    """Return the requested or chosen model, and the choice of `auto`. Raises Problem 422 for conflicting parameters."""
    name, _, dataset = query.model.partition("@")
    if name == AUTO:
        if query.precision:
            raise Problem(422, "invalid_parameter", "with model=auto the server chooses the precision too")
        return choose_model(server, server.catalog.dataset(dataset), query.max_latency_ms, query.min_accuracy)
    if query.max_latency_ms is not None or query.min_accuracy is not None:
        raise Problem(422, "invalid_parameter", "max_latency_ms and min_accuracy are for model=auto")
    model = server.splits.canary(server.catalog, query.model, query.precision) or server.catalog.find(query.model)
    check_precision(model, query.precision)
    return model, None


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

    If a model is unknown or not published, cannot be loaded, fails, or cannot meet the deadline, its row holds a
    `problem` and the other models still answer. If no model answers, the request fails with the problem of the highest
    status, whose member `models` holds the rows. A bad image or parameter fails the whole request too.
    """
    names = list(dict.fromkeys(models.split(",")))
    if len(names) > MAX_COMPARED:
        raise Problem(422, "invalid_parameter", f"models: {len(names)} are too many; at most {MAX_COMPARED}")
    if "" in names:
        raise Problem(422, "invalid_parameter", "models: a name is empty; the form is lenet5,resnet18")
    request.state.deadline = deadline = deadline_of(server, deadline_ms)
    async with asyncio.timeout_at(deadline) as until:
        rows = await rows_of(server, names)
        with server.device.request(), ExitStack() as held:
            loaded = await load_all(server, rows, held, until)
            results = await answers(server, request, [(model, queue) for _, model, queue in loaded], top_k, until)
    for (row, model, _), result in zip(loaded, results, strict=True):
        if isinstance(result, Exception):
            row.fail(result)
        else:
            accuracy = accuracy_of(model, result.precision)
            row.shown.answer, row.shown.top1 = result, accuracy.top1 if accuracy else None
    return comparison(server, rows)


@dataclass(eq=False)
class ModelRow:
    """Model of a comparison, None if no published model has the name, with the row to show and its error."""

    model: ServedModel | None
    shown: schema.Compared
    problem: Problem | None = None

    def fail(self, error: Exception) -> None:
        """Put an error into the row, and into the log if the error is an internal one."""
        self.problem = as_problem(error)
        self.shown.problem = self.problem.details()
        if self.problem.status == HTTPStatus.INTERNAL_SERVER_ERROR:
            logger.error("%s: %s", self.shown.model, error, exc_info=error)


async def rows_of(server: ServerContext, names: list[str]) -> list[ModelRow]:
    """Return a row for each model that `names` name, and a failed row for each name without one."""
    rows: dict[str, ModelRow] = {}
    for name in names:
        try:
            model = await server.catalog.fresh(partial(server.catalog.find, name))
        except Problem as problem:
            row = rows[name] = ModelRow(None, schema.Compared(model=name))
            row.fail(problem)
        else:
            tag, cost = model.manifest.tag, model.manifest.complexity
            rows[tag] = ModelRow(model, schema.Compared(model=tag, macs=cost.macs, params=cost.params))
    return list(rows.values())


async def load_all(
    server: ServerContext, rows: list[ModelRow], held: ExitStack, until: asyncio.Timeout
) -> list[tuple[ModelRow, ServedModel, EngineQueue]]:
    """Load the models of the rows, keep the engines in use until `held` closes, and return those that are loaded.

    The other rows fail. Loading may take a part of the time only, so that the models that are loaded can answer; models
    that are loaded already come first.
    """
    now, deadline = server.scheduler.clock(), until.when()
    assert deadline is not None
    wanted = [(row, row.model) for row in rows if row.model]
    wanted.sort(key=lambda item: item[1].chosen.queue is None)
    loaded = []
    try:
        async with asyncio.timeout_at(now + LOADING_SHARE * (deadline - now)):
            for row, model in wanted:
                try:
                    queue = await server.device.queue(model)
                except Problem as problem:
                    row.fail(problem)
                else:
                    loaded.append((row, model, held.enter_context(queue.in_use())))
    except TimeoutError:
        ready = [row for row, _, _ in loaded]
        for row, _ in wanted:
            if not (row.problem or row in ready):
                row.fail(Problem(504, "timeout", f"{row.shown.model} is still being loaded"))
    return loaded


def comparison(server: ServerContext, rows: list[ModelRow]) -> schema.Comparison:
    """Return the rows as an answer, and count those that failed. Raises Problem if all failed."""
    problems = [row.problem for row in rows if row.problem]
    if len(problems) == len(rows):
        raise worst_of(problems, models=[row.shown.model_dump(exclude_none=True) for row in rows])
    for row in rows:
        if row.problem:
            server.metrics.failed(row.shown.model if row.model else "", row.problem.code)
    named = {class_of(row.model, row.shown.answer) for row in rows if row.model and row.shown.answer}
    return schema.Comparison(agree=len(named) == 1, models=[row.shown for row in rows])


def class_of(model: ServedModel, answer: schema.Classification) -> int | str:
    """Return the most likely class: the label, or of ImageNet, whose labels have several spellings, the index."""
    first = answer.predictions[0]
    return first.index if model.manifest.dataset == IMAGENET else first.label
