"""Inference for a request of several images: admission by their number, decoding, and each image's answer or problem.

A request has only so many images under way at a time, so that a request of many does not delay single ones by all.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from fastapi import Request

from service.batches import Pixels
from service.body import Body
from service.context import ServerContext
from service.errors import Problem
from service.inference import ImageAnswer
from service.loading import ServedModel
from service.scheduler import EngineQueue

ImageInput = bytes | Pixels  # a file in a supported format, or the pixels that the model's graph takes
ReadImages = Callable[[Body], Awaitable[Sequence[ImageInput]]]


async def infer_images(
    server: ServerContext,
    model: ServedModel,
    queue: EngineQueue,
    read: ReadImages,
    until: asyncio.Timeout,
    *,
    expected: int = 1,
    request: Request | None = None,
) -> list[ImageAnswer | Problem]:
    """Read the images of a request, decode and infer each, and return each image's answer or its problem, in order.

    `expected` is the number of images as far as known before the body is read, by which a request is refused unread.
    `read` reads and parses the body, whose bytes count until this function returns; what the body lacks is its problem
    to raise. `until` is the request's time limit, entered by the caller; images that miss the limit have Problem 504,
    and the answers of the others are returned. The work ends if the client of `request` disconnects; without `request`
    the caller cancels.

    Raises Problem 422 `impossible_deadline` or Overloaded if the images cannot be answered in time all together, both
    before and after reading; Problem 413 `too_many_images` beyond `settings.max_images`, Problem 400 `empty_image`
    without any, and what `read` raises. The images count in the metrics, and the engine is in use, and self-tuning
    waits, while this function runs.
    """
    raise NotImplementedError
