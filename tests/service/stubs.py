"""Server in the process of the tests, with engines that answer as a test wishes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import numpy as np
from numpy.typing import NDArray

from service.admission import EngineQueue
from service.application import create_application
from service.context import ServerContext
from service.cost import BatchCost
from service.loading import Slot

TABBY, TIGER_CAT, PUG = 281, 282, 254  # indices of ImageNet


class StubEngine:
    """Engine that always answers the class `answers`, or raises `error`."""

    runtime = "stub"
    precision = "fp32"
    lanes = 1

    def __init__(self, answers: int = 0, error: Exception | None = None) -> None:
        self._answers, self._error = answers, error

    def infer(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        if self._error:
            raise self._error
        logits = np.zeros((len(pixels), 10), np.float32)
        logits[:, self._answers] = 1
        return logits


class RandomImageNetEngine(StubEngine):
    """Engine with random logits of 1,000 classes, and high ones of two cats and, between them, a dog."""

    def infer(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        logits = np.random.default_rng(0).standard_normal((len(pixels), 1000), np.float32)
        logits[:, [TABBY, PUG, TIGER_CAT]] = 12, 11.9, 11.8
        return logits


def put(server: ServerContext, tag: str, engine: StubEngine, seconds: float = 0.001) -> EngineQueue:
    """Serve a model with the given engine and predicted duration."""
    queue = EngineQueue(engine, BatchCost({1: seconds}, 32))
    server.catalog.models[tag].slots[None] = Slot(status="ready", queue=queue)
    return queue


@asynccontextmanager
async def client_of(server: ServerContext) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(create_application(server), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield client
