"""What the routes make of an engine that is full or fails."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from engines.store import PublishedModel
from service.api import Server, create_api
from service.catalog import Catalog
from service.scheduler import Overloaded, Scheduler
from service.settings import Settings
from tests.serving import ROOT

pytestmark = pytest.mark.anyio
DIGIT = (ROOT / "docs" / "digit.png").read_bytes()


class Failing:
    """Raises what it is given."""

    runtime = "failing"
    precision = "none"

    def __init__(self, error: Exception) -> None:
        self._error = error

    def infer(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        raise self._error


@pytest.fixture
async def api(lenet5: PublishedModel) -> AsyncIterator[tuple[Server, httpx.AsyncClient]]:
    settings = Settings()
    server = Server(settings, Catalog(settings), Scheduler(settings.max_batch, settings.max_waiting))
    transport = httpx.ASGITransport(create_api(server), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield server, client


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [(Overloaded("2 images wait already"), 503, "overloaded"), (RuntimeError("device lost"), 500, "internal_error")],
)
async def test_a_failing_engine_is_a_problem_and_counted(
    api: tuple[Server, httpx.AsyncClient], error: Exception, status: int, code: str
) -> None:
    server, client = api
    server.catalog.find("lenet5").engine = Failing(error)
    response = await client.post("/classify?model=lenet5", content=DIGIT)
    assert response.headers["content-type"] == "application/problem+json"
    assert (response.status_code, response.json()["code"]) == (status, code)
    assert "device lost" not in response.text
    assert ("retry-after" in response.headers) == (status == 503)
    assert f'outcome="{code}"}} 1.0' in (await client.get("/metrics")).text


async def test_wrong_parameters_are_counted_without_their_text(api: tuple[Server, httpx.AsyncClient]) -> None:
    _, client = api
    await client.post("/classify?model=lenet5&top_k=x", content=DIGIT)
    await client.post("/classify?model=nosuch", content=DIGIT)
    metrics = (await client.get("/metrics")).text
    assert 'convserve_requests_total{model="",outcome="invalid_parameter"} 1.0' in metrics
    assert 'convserve_requests_total{model="",outcome="unknown_model"} 1.0' in metrics
