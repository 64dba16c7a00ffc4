"""Explanation of an answer: how much each part of the picture speaks for a class.

A network that ends in global pooling has class activation maps, which cost one image. For any other network, parts of
the picture are hidden in turn (Zeiler and Fergus 2014, arXiv:1311.2901), and each costs an image.
"""

from __future__ import annotations

import asyncio
import io
from dataclasses import dataclass, field
from time import perf_counter
from typing import Literal

import numpy as np
from fastapi import Request
from numpy.typing import NDArray
from PIL import Image

from engines.published.manifest import Manifest
from engines.published.maps import MAPS, map_edge
from engines.published.preprocess import Preprocess
from service import schema
from service.admission import Answer, EngineQueue, QueuePlace, QueuePlaces
from service.batches import Pixels
from service.context import ServerContext
from service.errors import Problem
from service.inference import finite, prediction, refusal, while_connected
from service.loading import ServedModel

LEAST_EDGE = 4  # cells: a coarser map, as of a picture of 64 pixels in a ResNet, shows less than hiding does
EDGES = (7, 5, 4)  # cells of the grid on which parts are hidden, the finest that the time allows
TIME_SHARE = 0.5  # of the time that is left, which hiding may take on an idle server
LEAST_PIXELS = 224  # edge of an overlay; smaller inputs are enlarged by a whole number
HEAT, OPACITY = (213, 94, 0), 0.7  # colour of the parts that speak for a class (Okabe and Ito's vermilion)
Grid = NDArray[np.float64]


@dataclass(frozen=True)
class ExplanationPlan:
    """Method of an explanation, with the engine's queue, the edge of the grid in cells, and the images to run."""

    method: Literal["class_activation_map", "occlusion"]
    queue: EngineQueue
    edge: int
    images: int


@dataclass(frozen=True, kw_only=True)
class FramedPreprocess(Preprocess):
    """Preprocessing that notes which part of the picture the network saw."""

    seen: list[schema.PictureBox] = field(default_factory=list, compare=False)

    def __call__(self, picture: Image.Image) -> Pixels:
        """Return the pixels as `Preprocess` does, and note the part, padding included, in shares of the picture."""
        left, top, right, bottom = self.box(picture.width, picture.height)
        x, y = self.pad * (right - left) / self.crop, self.pad * (bottom - top) / self.crop
        wide, high = picture.size
        box = schema.PictureBox(
            left=(left - x) / wide, top=(top - y) / high, right=(right + x) / wide, bottom=(bottom + y) / high
        )
        self.seen.append(box)
        return super().__call__(picture)


async def explain(
    server: ServerContext, request: Request, model: ServedModel, index: int | None, until: asyncio.Timeout
) -> tuple[schema.Explanation, Pixels]:
    """Read and decode the request's image; return the explanation, and the pixels that the network saw.

    `index` is the class to explain, None for the most probable. Raises Problem 422 or Overloaded, before the body is
    read and again after, if the images of the explanation cannot be answered by the deadline. No shadow gets these
    images, whose answers say nothing of another model.
    """
    deadline = until.when()
    assert deadline is not None
    plan = await plan_for(server, model, deadline)
    with plan.queue.in_use(), server.bodies.hold() as body:
        check(server, model, plan, deadline)  # the body is worth reading
        image = await body.read(request)
        check(server, model, plan, deadline)
        with (
            QueuePlaces(server.scheduler, plan.queue, deadline, plan.images) as places,
            places.take() as first,
            while_connected(request, until),
        ):
            framed = FramedPreprocess(**vars(model.manifest.preprocess))
            content_type, alone = request.headers.get("content-type", ""), server.bodies.count == 1
            (pixels,), decode_ms = await server.decoders(image, content_type, [framed], scaled=False, alone=alone)
            began = perf_counter()
            answers = await run_all(server, model, plan, first, places, pixels, decode_ms)
            took_ms = (perf_counter() - began) * 1000
    logits, grid = evidence(plan, answers, len(model.manifest.labels), index)
    engine, queue_ms = plan.queue.engine, min(answer.queue_ms for answer in answers)
    explained = schema.Explanation(
        model=model.manifest.tag,
        runtime=engine.runtime,
        precision="fp32" if engine.precision == MAPS else engine.precision,
        method=plan.method,
        explained=explained_class(logits, model.manifest, index),
        grid=grid.tolist(),
        seen=framed.seen[0],
        images=plan.images,
        timing_ms=schema.Timing(
            decode=round(decode_ms, 3), queue=round(queue_ms, 3), inference=round(max(0.0, took_ms - queue_ms), 3)
        ),
    )
    return explained, pixels


async def plan_for(server: ServerContext, model: ServedModel, deadline: float) -> ExplanationPlan:
    """Return how to explain a model's answers by a deadline, and load the engine for that if necessary.

    A network whose maps cannot be had here is explained by hiding. Raises Problem 422 `not_explainable` if the images
    of the coarsest grid are more than may wait.
    """
    edge = map_edge(model.manifest.complexity)
    if edge >= LEAST_EDGE:
        try:
            return ExplanationPlan("class_activation_map", await server.device.queue(model, MAPS), edge, 1)
        except Problem as problem:
            if problem.code != "not_loadable":
                raise
    most = server.scheduler.max_waiting
    edges = [edge for edge in EDGES if edge**2 + 1 <= most]
    if not edges:
        needed = f"{model.manifest.tag} is explained by {EDGES[-1] ** 2 + 1} images or more"
        raise Problem(422, "not_explainable", f"{needed}, and CONVSERVE_MAX_WAITING is {most}")
    queue = await server.device.queue(model)
    time_s = TIME_SHARE * (deadline - server.scheduler.clock())
    in_time = (edge for edge in edges if queue.cost.uncorrected_backlog_s(edge**2 + 1) <= time_s)
    edge = next(in_time, edges[-1])
    return ExplanationPlan("occlusion", queue, edge, edge**2 + 1)


def check(server: ServerContext, model: ServedModel, plan: ExplanationPlan, deadline: float) -> None:
    """Raise Problem 422 `impossible_deadline` or Overloaded if the images cannot all be answered by the deadline."""
    if error := refusal(server, model, plan.queue, deadline, plan.images, to_decode=1):
        raise error


async def run_all(
    server: ServerContext,
    model: ServedModel,
    plan: ExplanationPlan,
    first: QueuePlace,
    places: QueuePlaces,
    pixels: Pixels,
    decode_ms: float,
) -> list[Answer]:
    """Return the answers to the picture and to each picture with a part hidden, and count them in the metrics.

    The picture has the place `first`, which counts since before its decoding; the others take theirs in turn. Two
    batches are under way at a time, so that images of other requests get between. If one image fails, the others leave
    the queue. Only the picture counts in the latencies, since the others are not decoded.
    """
    under_way = asyncio.Semaphore(2 * plan.queue.cost.best_batch)
    colour = pixels.mean((0, 1)).round().astype(np.uint8)

    async def one(number: int) -> Answer:
        async with under_way:
            if number:
                answer = await places.take().infer(hidden(pixels, plan.edge, number - 1, colour))
            else:
                answer = await first.infer(pixels, decode_ms)
        finite(model, plan.queue, answer.logits)
        stages = {"queue": answer.queue_ms, "inference": answer.inference_ms}
        if not number:
            stages = {"decode": decode_ms} | stages
            server.device.answered(model, tuple(stages.values()))
        server.metrics.answered(model.manifest.tag, answer.batch_size, stages)
        return answer

    tasks = [asyncio.create_task(one(number)) for number in range(plan.images)]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


def hidden(pixels: Pixels, edge: int, cell: int, colour: NDArray[np.uint8]) -> Pixels:
    """Return a picture with a window of one colour over a cell of the grid and half of each cell around."""
    row, column = divmod(cell, edge)
    covered = pixels.copy()
    covered[span(row, edge, len(pixels)), span(column, edge, pixels.shape[1])] = colour
    return covered


def span(cell: int, edge: int, size: int) -> slice:
    """Return the pixels, of `size` in a row, under a window of two cells' width around a cell's middle."""
    return slice(max(0, round((cell - 0.5) * size / edge)), round((cell + 1.5) * size / edge))


def evidence(
    plan: ExplanationPlan, answers: list[Answer], classes: int, index: int | None
) -> tuple[NDArray[np.float64], Grid]:
    """Return the logits of the whole picture, (classes,), and the grid of what speaks for the class."""
    outputs = np.stack([answer.logits for answer in answers]).astype(np.float64)
    logits = outputs[0, :classes]
    best = int(logits.argmax()) if index is None else index
    if plan.method == "class_activation_map":
        return logits, outputs[0, classes:].reshape(plan.edge, plan.edge, classes)[:, :, best]
    odds = log_odds(outputs, best)
    return logits, (odds[0] - odds[1:]).reshape(plan.edge, plan.edge)


def log_odds(logits: NDArray[np.float64], index: int) -> NDArray[np.float64]:
    """Return the logarithms of the odds of a class, p / (1 - p), which fall also where p stays near 1; (images,)."""
    others = np.delete(logits, index, axis=-1)
    most = others.max(-1)
    result: NDArray[np.float64] = logits[:, index] - most - np.log(np.exp(others - most[:, None]).sum(-1))
    return result


def log_probabilities(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the logarithms of the softmax over the last axis."""
    shifted = logits - logits.max(-1, keepdims=True)
    result: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return result


def explained_class(logits: NDArray[np.float64], manifest: Manifest, index: int | None) -> schema.Prediction:
    """Return the class of an index, or the most probable, with its label and probability."""
    best = int(logits.argmax()) if index is None else index
    return prediction(manifest, best, float(np.exp(log_probabilities(logits)[best])))


def overlay(pixels: Pixels, grid: list[list[float]]) -> bytes:
    """Return a PNG of the pixels that the network saw, coloured where the picture speaks for the class."""
    height, width, channels = pixels.shape
    factor = -(-LEAST_PIXELS // min(height, width))
    picture = Image.fromarray(pixels if channels == 3 else pixels[:, :, 0]).convert("RGB")
    picture = picture.resize((width * factor, height * factor), Image.Resampling.NEAREST)
    heat = np.array(grid, np.float32).clip(0)
    smooth = Image.fromarray(heat / max(heat.max(), np.float32(1e-12))).resize(picture.size, Image.Resampling.BICUBIC)
    opacity = (np.asarray(smooth).clip(0, 1) * (255 * OPACITY)).astype(np.uint8)
    picture.paste(HEAT, (0, 0, *picture.size), Image.fromarray(opacity))
    written = io.BytesIO()
    picture.save(written, "PNG")
    return written.getvalue()
