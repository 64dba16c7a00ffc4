"""Images in, classes out."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http import HTTPStatus
from math import inf
from typing import Annotated, Literal

import numpy as np
from fastapi import APIRouter, Query, Request, Response
from numpy.typing import NDArray
from pydantic import BaseModel, Field
from starlette.requests import ClientDisconnect

from service import schema
from service.choice import AUTO, accuracy_of, choose_model
from service.errors import Problem, as_problem
from service.images import FORMATS
from service.loading import Model
from service.operations import trace
from service.scheduler import Lane, Pixels, Place
from service.server import Server, Shared, problems

MAX_TOP_K = 1000
MAX_COMPARED = 16
logger = logging.getLogger("bentoml.convserve")
PATIENCE_S = 0.05  # before we look whether a client is still there

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
        lane = await server.catalog.loader.lane(found, asked.precision)
        with lane.in_use():
            (answer,) = await answers(server, request, [(found, lane)], asked.top_k, until)
    if isinstance(answer, Exception):
        raise answer
    answer.choice = choice
    timing = ", ".join(f"{stage};dur={ms:.3f}" for stage, ms in answer.timing_ms)
    content = answer.model_dump_json(exclude_none=True)
    return Response(content, media_type="application/json", headers={"Server-Timing": timing})


def model_for(server: Server, asked: Asked) -> tuple[Model, schema.Choice | None]:
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
                    lane = await server.catalog.loader.lane(model)
                except Problem as problem:
                    failed(server, row, problem)
                else:
                    asked.append((model, held.enter_context(lane.in_use())))
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


def deadline_of(server: Server, deadline_ms: float | None) -> float:
    """On the scheduler's clock, which is the event loop's; never later than the server's own."""
    return server.scheduler.clock() + min(server.settings.timeout_s, (deadline_ms or inf) / 1000)


async def answers(
    server: Server, request: Request, asked: list[tuple[Model, Lane]], top_k: int, until: asyncio.Timeout
) -> list[schema.Classification | Exception]:
    """What each model makes of the request's image, or what kept it from that.

    Before the body is read: Problem 422 if one of them could not answer in time were it idle; there, and again before
    the image is decoded, Overloaded if it could not as it is.
    """
    deadline = until.when()
    assert deadline is not None
    left = deadline - server.scheduler.clock()
    for model, lane in asked:
        if lane.cost.alone_s > left:
            told = f"takes {1000 * lane.cost.alone_s:.1f} ms for an image, of which {1000 * left:.1f} ms are left"
            raise Problem(422, "impossible_deadline", f"{model.manifest.tag} {told}")
        server.scheduler.check(lane, deadline, server.decoders.wait_s())
    with server.bodies.hold() as body, ExitStack() as places:
        image = await body.read(request)
        wait_s = server.decoders.wait_s()
        admitted = (server.scheduler.admit(lane, deadline, wait_s) for _, lane in asked)
        held = [(model, places.enter_context(place)) for (model, _), place in zip(asked, admitted, strict=True)]
        content_type = request.headers.get("content-type", "")
        with while_connected(request, until):
            return await infer_all(server, held, image, content_type, top_k)


async def infer_all(
    server: Server, held: list[tuple[Model, Place]], body: bytes, content_type: str, top_k: int
) -> list[schema.Classification | Exception]:
    """Decode once, then each model in its turn."""
    preprocesses = [model.manifest.preprocess for model, _ in held]
    scaled = server.settings.scaled_jpeg and all(model.bears_scaled_jpeg(place.lane.engine) for model, place in held)
    alone = server.bodies.count == 1
    pixels, decode_ms = await server.decoders(body, content_type, preprocesses, scaled=scaled, alone=alone)

    async def one(model: Model, place: Place, own: Pixels) -> schema.Classification | Exception:
        try:
            return await infer(server, model, place, own, decode_ms, top_k)
        except Exception as error:
            return error

    if len(held) == 1:
        return [await one(*held[0], pixels[0])]
    return await asyncio.gather(*(one(model, place, own) for (model, place), own in zip(held, pixels, strict=True)))


async def infer(
    server: Server, model: Model, place: Place, pixels: Pixels, decode_ms: float, top_k: int
) -> schema.Classification:
    """Wait for the device, name the classes, count it."""
    entry, engine = model.manifest, place.lane.engine
    answer = await place.infer(pixels)
    timing = schema.Timing(
        decode=round(decode_ms, 3), queue=round(answer.queue_ms, 3), inference=round(answer.inference_ms, 3)
    )
    stages = timing.model_dump()
    server.metrics.answered(entry.tag, answer.batch_size, stages)
    trace(server.tracer, stages)
    return schema.Classification(
        model=entry.tag,
        runtime=engine.runtime,
        precision=engine.precision,
        predictions=top(answer.logits, entry.labels, top_k),
        batch_size=answer.batch_size,
        timing_ms=timing,
    )


@contextmanager
def while_connected(request: Request, until: asyncio.Timeout) -> Iterator[None]:
    """What is done is given up if the client goes away meanwhile: ClientDisconnect. It is looked for after a moment."""
    loop = asyncio.get_running_loop()
    watching: list[asyncio.Task[None]] = []
    gone = False

    async def watch() -> None:
        nonlocal gone
        while (await request.receive())["type"] != "http.disconnect":
            pass
        gone = True
        if not until.expired():
            until.reschedule(loop.time())

    soon = loop.call_later(PATIENCE_S, lambda: watching.append(loop.create_task(watch())))
    try:
        yield
    except asyncio.CancelledError:
        if gone:
            raise ClientDisconnect from None
        raise
    finally:
        soon.cancel()
        for task in watching:
            task.cancel()


def compared(model: Model) -> schema.Compared:
    """A row of a comparison, without an answer yet."""
    entry = model.manifest
    return schema.Compared(model=entry.tag, macs=entry.complexity.macs, params=entry.complexity.params)


def failed(server: Server, row: schema.Compared, error: Exception) -> None:
    """What kept a model from an answer: told, counted and, if it is the server's own fault, logged."""
    problem = as_problem(error)
    row.problem = problem.details()
    server.metrics.failed(row.model, problem.code)
    if problem.status == HTTPStatus.INTERNAL_SERVER_ERROR:
        logger.error("%s: %s", row.model, error, exc_info=error)


def top(logits: NDArray[np.float32], labels: tuple[str, ...], k: int) -> list[schema.Prediction]:
    """The `k` most probable classes, or all if there are fewer."""
    shares = np.exp(logits - logits.max())
    best = np.argsort(-logits, kind="stable")[:k]
    probabilities = (shares[best] / shares.sum()).tolist()
    return [
        schema.Prediction(index=index, label=labels[index], probability=probability)
        for index, probability in zip(best.tolist(), probabilities, strict=True)
    ]
