"""Ray Serve: `python -m loadtest.peers.ray_serve PORT`, one replica, its other settings Ray's own.

As installed it runs one image at a time, as Ray's tutorial of an image classifier does; else it batches.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import numpy as np
from PIL import Image
from starlette.requests import Request

from loadtest.peers import AS_INSTALLED
from loadtest.peers.model import MAX_BATCH, PeerModel

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # heeded when Ray is imported; else it reports to its authors
os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 (Ray's spelling); not 15, which gives way to the load generator

import ray
from ray import serve


class OneByOne:
    """Deployment that answers with the most probable class of a form's `image`."""

    def __init__(self) -> None:
        self.model = PeerModel()

    async def __call__(self, request: Request) -> dict[str, Any]:
        """Classify the image of one request."""
        async with request.form() as form:
            pixels = self.model.pixels(Image.open(form["image"].file))  # type: ignore[union-attr]
        (logits,) = self.model.infer(pixels[None])
        return {"predictions": self.model.top(logits)}


class Batches:
    """The same, with batches of what has arrived."""

    def __init__(self) -> None:
        self.model = PeerModel()

    async def __call__(self, request: Request) -> dict[str, Any]:
        """Classify the image of one request."""
        async with request.form() as form:
            return await self.classify(Image.open(form["image"].file))  # type: ignore[union-attr]

    @serve.batch(max_batch_size=MAX_BATCH)
    async def classify(self, pictures: list[Image.Image]) -> list[dict[str, Any]]:
        """Classify a batch of images."""
        logits = self.model.infer(np.stack([self.model.pixels(picture) for picture in pictures]))
        return [{"predictions": self.model.top(row)} for row in logits]


def main() -> None:
    """Serve until the end of the process."""
    as_installed = os.environ["PEER_PRECISION"] == AS_INSTALLED
    # Ray's own 5 requests at a time would be the largest batch.
    options: dict[str, Any] = {} if as_installed else {"max_ongoing_requests": 2 * MAX_BATCH}
    deployment = serve.deployment(**options)(OneByOne if as_installed else Batches)
    ray.init(include_dashboard=False)
    serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[1])})
    serve.run(deployment.bind(), route_prefix="/classify", blocking=True)


if __name__ == "__main__":
    main()
