"""Inference for a request of the Open Inference Protocol, over HTTP or gRPC."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from fastapi import Request
from starlette.datastructures import State

from service.context import ServerContext
from service.errors import Problem, worst_of
from service.inference import ImageAnswer, deadline_of
from service.inference_protocol.models import find, split
from service.inference_protocol.schema import InferenceRequest
from service.inference_protocol.tensors import OutputTensor, Received, check_outputs, images_of, outputs_of
from service.several_images import check, infer_read

Receive = Callable[[], Awaitable[Received]]


@dataclass(frozen=True)
class InferenceAnswer:
    """Answer to `request`; `parameters` name the engine's runtime and precision."""

    request: InferenceRequest
    model_name: str
    model_version: str
    parameters: dict[str, str]
    outputs: list[OutputTensor]


async def infer(
    server: ServerContext,
    state: State,
    name: str,
    receive: Receive,
    *,
    timeout_s: float | None = None,
    request: Request | None = None,
) -> InferenceAnswer:
    """Receive the request for the model `name`, infer its images, and return the answer.

    `receive` reads and parses the request; the caller holds the body. The server's time limit, `timeout_s` and the
    request's parameter `timeout` bound the time. `state` notes what the log needs. The work ends once the client of
    `request` disconnects. Raises Problem for a request that is wrong or whose images have a problem, and Overloaded,
    where possible before the request is received.
    """
    began = server.scheduler.clock()
    state.deadline = deadline_of(server, None if timeout_s is None else 1000 * timeout_s)
    async with asyncio.timeout_at(state.deadline) as until:
        model = await find(server, name)
        state.tag = model.manifest.tag
        queue = await server.device.queue(model)
        with queue.in_use():
            check(server, model, queue, until, 1)
            received = await receive()
            asked = received.request
            check_outputs(asked.outputs)
            if timeout_us := asked.parameters.timeout:
                state.deadline = min(state.deadline, began + timeout_us / 1e6)
                until.reschedule(state.deadline)
            take = partial(images_of, received, model.manifest.preprocess.shape, server.settings.images_at_most)
            images = await asyncio.to_thread(take) if received.large else take()
            results = await infer_read(server, model, queue, images, until, request)
    logits = np.stack([answer.logits for answer in answers_in(state, results, asked.inputs[0].name)])
    outputs = outputs_of(logits, model.manifest.labels, asked.outputs)
    engine = {"runtime": queue.engine.runtime, "precision": queue.engine.precision}
    return InferenceAnswer(asked, *split(model.manifest.tag), engine, outputs)


def answers_in(state: State, results: Sequence[ImageAnswer | Problem], name: str) -> list[ImageAnswer]:
    """Return the answers of all images. Raises the worst problem, with the place of its image in the tensor `name`.

    The protocol has no way to report the problem of one image beside the answers of others.
    """
    problems = [
        Problem(result.status, result.code, f"{name}[{place}]: {result.detail}", headers=result.headers, **result.more)
        for place, result in enumerate(results)
        if isinstance(result, Problem)
    ]
    if problems:
        state.counted = True  # each image has been counted in the metrics
        raise worst_of(problems)
    return [result for result in results if isinstance(result, ImageAnswer)]
