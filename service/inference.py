"""Inference for one request: admission, decoding, waiting for the device, and the most probable classes."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from math import inf

import numpy as np
from fastapi import Request
from numpy.typing import NDArray
from starlette.requests import ClientDisconnect

from engines.published.imagenet import classes_of
from engines.published.manifest import Manifest
from engines.runtimes.engine import Engine
from service import schema
from service.admission import EngineQueue, Overloaded, QueuePlace
from service.batches import Logits, Picture, RefusedJpeg
from service.context import ServerContext
from service.errors import Problem
from service.loading import ServedModel
from service.request_log import trace

PATIENCE_S = 0.05  # seconds before the server checks that a client is still connected


@dataclass(frozen=True)
class ImageAnswer:
    """Answer to one image: logits (classes,), the size of the batch, and the milliseconds by stage."""

    logits: Logits
    batch_size: int
    timing_ms: schema.Timing


def deadline_of(server: ServerContext, deadline_ms: float | None) -> float:
    """Return a request's deadline in seconds on the scheduler's clock, which is the event loop's.

    The server's own time limit bounds the requested `deadline_ms`.
    """
    asked_ms = inf if deadline_ms is None else deadline_ms
    return server.scheduler.clock() + min(server.settings.timeout_s, asked_ms / 1000)


async def answers(
    server: ServerContext,
    request: Request,
    requested: list[tuple[ServedModel, EngineQueue]],
    top_k: int,
    until: asyncio.Timeout,
) -> list[schema.Classification | Exception]:
    """Read and decode the request's image, and return each model's answer or its error.

    An error is Problem 422 if the model could not meet the deadline even on an idle server, and Overloaded if it cannot
    meet the deadline at the current load. Both are checked before the body is read; the load again before decoding.
    If every model has an error, the image is not read, or not decoded.
    """
    deadline = until.when()
    assert deadline is not None
    errors = [refusal(server, model, queue, deadline) for model, queue in requested]
    if all(errors):
        return list(filter(None, errors))
    with server.bodies.hold() as body:
        return await answers_read(server, request, requested, errors, await body.read(request), top_k, until)


async def answers_read(
    server: ServerContext,
    request: Request,
    requested: list[tuple[ServedModel, EngineQueue]],
    errors: list[Exception | None],
    image: bytes,
    top_k: int,
    until: asyncio.Timeout,
) -> list[schema.Classification | Exception]:
    """Decode the image of a body that has been read, and return as `answers` does; `errors` are from before."""
    deadline = until.when()
    assert deadline is not None
    with ExitStack() as places:
        wait_s = server.decoders.wait_s()
        held = []
        for number, (model, queue) in enumerate(requested):
            if not errors[number]:
                try:
                    place = server.scheduler.admit(queue, deadline, wait_s)
                except Overloaded as error:
                    errors[number] = error
                else:
                    held.append((model, places.enter_context(place)))
        if not held:
            return list(filter(None, errors))
        content_type = request.headers.get("content-type", "")
        with while_connected(request, until):
            answered = iter(await infer_all(server, held, image, content_type, top_k, until))
    return [error or next(answered) for error in errors]


def refusal(
    server: ServerContext,
    model: ServedModel,
    queue: EngineQueue,
    deadline: float,
    images: int = 1,
    to_decode: int | None = None,
) -> Exception | None:
    """Return the error of a model that cannot answer all images by the deadline, else None.

    All images are decoded, or only `to_decode` of them.
    """
    left = deadline - server.scheduler.clock()
    alone_s = queue.cost.uncorrected_backlog_s(images)
    if alone_s > left:
        needed = f"needs {1000 * alone_s:.1f} ms for {'an image' if images == 1 else f'{images} images'}"
        reason = f"{needed}; {1000 * max(0.0, left):.1f} ms are left"
        return Problem(422, "impossible_deadline", f"{model.manifest.tag} {reason}")
    try:
        server.scheduler.check(
            queue, deadline, server.decoders.wait_s(images if to_decode is None else to_decode), images
        )
    except Overloaded as error:
        return error
    return None


async def infer_all(
    server: ServerContext,
    held: list[tuple[ServedModel, QueuePlace]],
    body: bytes,
    content_type: str,
    top_k: int,
    until: asyncio.Timeout,
) -> list[schema.Classification | Exception]:
    """Decode the image once and run all models on it; return each model's answer or its error.

    Of several models, one that misses the deadline has TimeoutError, and the answers of the others are returned. A JPEG
    for one model is not decoded here if the model's device does so.
    """
    if len(held) == 1 and held[0][1].queue.samplings:
        model, place = held[0]
        try:
            answer = await undecoded(server, model, place, body, content_type)
        except Exception as error:
            return [error]
        if answer:
            return [classification(model, place.queue.engine, answer, top_k)]
    preprocesses = [model.manifest.preprocess for model, _ in held]
    scaled = server.settings.scaled_jpeg and all(
        model.supports_scaled_jpeg(place.queue.engine) for model, place in held
    )
    alone = server.bodies.count == 1
    pixels, decode_ms = await server.decoders(body, content_type, preprocesses, scaled=scaled, alone=alone)
    limit = None
    if len(held) > 1 and not until.expired():
        limit = until.when()
        until.reschedule(None)  # each model has the deadline for itself

    async def one(model: ServedModel, place: QueuePlace, own: Picture) -> schema.Classification | Exception:
        try:
            async with asyncio.timeout_at(limit):
                answer = await infer(server, model, place, own, decode_ms)
            return classification(model, place.queue.engine, answer, top_k)
        except Exception as error:
            return error

    if len(held) == 1:
        return [await one(*held[0], pixels[0])]
    return await asyncio.gather(*(one(model, place, own) for (model, place), own in zip(held, pixels, strict=True)))


async def undecoded(
    server: ServerContext, model: ServedModel, place: QueuePlace, body: bytes, content_type: str
) -> ImageAnswer | None:
    """Return the answer to a JPEG that the model's device decodes; None if Pillow must decode."""
    jpeg, inspect_ms = await server.decoders.plain_jpeg(body, content_type, place.queue.samplings)
    if not jpeg:
        return None
    try:
        return await infer(server, model, place, jpeg, inspect_ms)
    except RefusedJpeg:
        place.__enter__()  # counts as being decoded again
        return None


async def infer(
    server: ServerContext, model: ServedModel, place: QueuePlace, picture: Picture, decode_ms: float
) -> ImageAnswer:
    """Wait for the device and return the answer; count the answer in metrics and spans.

    Raises Problem 500 for an answer with infinite numbers or NaN.
    """
    answer = await place.infer(picture, decode_ms)
    finite(model, place.queue, answer.logits)
    server.splits.copy(server, model, picture, answer)
    timing = schema.Timing(
        decode=round(decode_ms, 3), queue=round(answer.queue_ms, 3), inference=round(answer.inference_ms, 3)
    )
    stages = timing.model_dump()
    server.metrics.answered(model.manifest.tag, answer.batch_size, stages)
    server.device.answered(model, (decode_ms, answer.queue_ms, answer.inference_ms))
    trace(server.tracer, stages)
    return ImageAnswer(answer.logits, answer.batch_size, timing)


def finite(model: ServedModel, queue: EngineQueue, logits: Logits) -> None:
    """Raise Problem 500 if an engine has answered with infinite numbers or NaN, which JSON cannot hold."""
    if not np.isfinite(logits).all():
        tag, engine = model.manifest.tag, queue.engine
        detail = f"{tag} has no answer to this image: {engine.runtime} in {engine.precision} computed infinity or NaN"
        raise Problem(500, "internal_error", detail)


def classification(model: ServedModel, engine: Engine, answer: ImageAnswer, top_k: int) -> schema.Classification:
    """Return an answer with the labels of its most probable classes."""
    predictions, superclasses = top(answer.logits, model.manifest, top_k)
    return schema.Classification(
        model=model.manifest.tag,
        runtime=engine.runtime,
        precision=engine.precision,
        predictions=predictions,
        superclasses=superclasses,
        batch_size=answer.batch_size,
        timing_ms=answer.timing_ms,
    )


@contextmanager
def while_connected(request: Request, until: asyncio.Timeout) -> Iterator[None]:
    """Cancel the work in the context and raise ClientDisconnect once the client disconnects.

    The check starts after 50 ms, so that fast answers do not pay for it.
    """
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

    timer = loop.call_later(PATIENCE_S, lambda: watching.append(loop.create_task(watch())))
    try:
        yield
    except asyncio.CancelledError:
        if gone:
            raise ClientDisconnect from None
        raise
    finally:
        timer.cancel()
        for task in watching:
            task.cancel()


def top(
    logits: NDArray[np.float32], manifest: Manifest, k: int
) -> tuple[list[schema.Prediction], list[schema.SuperclassProbability] | None]:
    """Return the `k` most probable classes and, of a model of ImageNet, superclasses; all if there are fewer."""
    exponentials = np.exp(logits - logits.max())
    best = np.argsort(-logits, kind="stable")[:k]
    probabilities = (exponentials[best] / exponentials.sum()).tolist()
    predictions = [
        prediction(manifest, index, probability)
        for index, probability in zip(best.tolist(), probabilities, strict=True)
    ]
    known = classes_of(manifest)
    if known is None:
        return predictions, None
    sums = known.sums(exponentials)
    sums /= sums.sum()
    return predictions, [
        schema.SuperclassProbability(superclass=known.names[index], probability=sums.item(index))
        for index in np.argsort(-sums, kind="stable")[:k].tolist()
    ]


def prediction(manifest: Manifest, index: int, probability: float) -> schema.Prediction:
    """Return a class of a model with its label and, of ImageNet, its id in WordNet and its superclass."""
    label = manifest.labels[index]
    if known := classes_of(manifest):
        return schema.Prediction(
            index=index,
            label=label,
            probability=probability,
            wnid=known.wnids[index],
            superclass=known.superclass(index),
        )
    return schema.Prediction(index=index, label=label, probability=probability)
