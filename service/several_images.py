"""Inference for a request of several images: admission by their number, decoding, and each image's answer or problem.

A request has only so many images under way at a time, so that a request of many does not delay single ones by all.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from http import HTTPStatus

from fastapi import Request

from service.admission import EngineQueue, QueuePlace, QueuePlaces
from service.batches import Pixels
from service.context import ServerContext
from service.errors import Problem, as_problem
from service.inference import ImageAnswer, infer, refusal, undecoded, while_connected
from service.loading import ServedModel

# A file in a supported format, the pixels that the model's graph takes, or the problem of an image that is neither.
ImageInput = bytes | Pixels | Problem
logger = logging.getLogger("bentoml.convserve")


def check(
    server: ServerContext,
    model: ServedModel,
    queue: EngineQueue,
    until: asyncio.Timeout,
    images: int,
    to_decode: int | None = None,
) -> float:
    """Return the deadline of a request with so many images; before the body is read, with as many as are known of.

    All images are decoded, or only `to_decode` of them.
    Raises Problem 422 `impossible_deadline` or Overloaded if the images cannot all be answered in time, Problem 413
    `too_many_images` beyond the settings, and Problem 400 `empty_image` without images.
    """
    most, deadline = server.settings.images_at_most, until.when()
    assert deadline is not None
    if not images:
        raise Problem(400, "empty_image", "the request has no image")
    if images > most:
        raise too_many(most)
    if error := refusal(server, model, queue, deadline, images, to_decode):
        raise error
    return deadline


def too_many(most: int) -> Problem:
    """Return problem 413 `too_many_images`."""
    return Problem(413, "too_many_images", f"a request may have at most {most} images")


async def infer_read(
    server: ServerContext,
    model: ServedModel,
    queue: EngineQueue,
    images: Sequence[ImageInput],
    until: asyncio.Timeout,
    request: Request | None = None,
) -> list[ImageAnswer | Problem]:
    """Admit, decode and infer the images of a request that has been read; return each answer or problem, in order.

    A Problem among the images is returned in its place. `until` is the request's time limit, which the caller has
    entered; images that miss the limit have Problem 504, and the answers of the others are returned. The work ends once
    the client of `request` disconnects, or the caller cancels. Each image is counted in the metrics. Raises errors as
    `check` does.
    """
    files = sum(isinstance(image, bytes) for image in images)
    deadline = check(server, model, queue, until, len(images), files)
    alone = len(images) == server.bodies.count == 1
    window = asyncio.Semaphore(images_under_way(server, queue))
    limit = None
    if not until.expired():
        limit = deadline
        until.reschedule(None)  # each image has the deadline for itself

    async def one(image: ImageInput) -> ImageAnswer | Problem:
        try:
            async with asyncio.timeout_at(limit), window:
                with places.take() as place:
                    return await answer_to(server, model, place, image, alone)
        except Exception as error:
            return failed(server, model, error)

    connected: AbstractContextManager[None] = nullcontext() if request is None else while_connected(request, until)
    with QueuePlaces(server.scheduler, queue, deadline, len(images)) as places, connected:
        if len(images) == 1:  # which needs no task of its own
            return [await one(images[0])]
        return await asyncio.gather(*(one(image) for image in images))


def images_under_way(server: ServerContext, queue: EngineQueue) -> int:
    """Return how many images of a request are decoded, wait for the device, or run, at a time.

    They fill a batch while another runs, and every decoder; a single image of another request waits for no more.
    """
    return 2 * queue.cost.best_batch + server.decoders.threads


async def answer_to(
    server: ServerContext, model: ServedModel, place: QueuePlace, image: ImageInput, alone: bool
) -> ImageAnswer:
    """Decode one image, unless the model's device does so, and return the answer. Raises the image's problem.

    `alone` is True if no other image is in progress.
    """
    if isinstance(image, Problem):
        raise image
    if not isinstance(image, bytes):
        return await infer(server, model, place, image, 0.0)
    if place.queue.samplings and (answer := await undecoded(server, model, place, image, "")):
        return answer
    scaled = server.settings.scaled_jpeg and model.supports_scaled_jpeg(place.queue.engine)
    (pixels,), decode_ms = await server.decoders(image, "", [model.manifest.preprocess], scaled=scaled, alone=alone)
    return await infer(server, model, place, pixels, decode_ms)


def failed(server: ServerContext, model: ServedModel, error: Exception) -> Problem:
    """Return the problem of one image; count the problem, and log an internal error."""
    problem = as_problem(error)
    server.metrics.failed(model.manifest.tag, problem.code)
    if problem.status == HTTPStatus.INTERNAL_SERVER_ERROR:
        logger.error("%s: %s", model.manifest.tag, error, exc_info=error)
    return problem
