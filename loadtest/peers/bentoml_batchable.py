"""BentoML with adaptive batching: `batchable=True` over a list of images, with the limits of its documentation.

As installed, with the limits that a route has without any, as in BentoML's README. With torch there are several
workers, each with its network, as BentoML's documentation of workers has it.
"""

from __future__ import annotations

import json
import os
from typing import Any

import bentoml
import numpy as np
from _bentoml_sdk.io_models import IORootModel
from PIL.Image import Image

from loadtest.peers import AS_INSTALLED
from loadtest.peers.model import MAX_BATCH, WORKERS, PeerModel

LIMITS = {} if os.environ["PEER_PRECISION"] == AS_INSTALLED else {"max_batch_size": MAX_BATCH, "max_latency_ms": 1000}


class Predictions(IORootModel[list[dict[str, Any]]]):  # type: ignore[misc]
    """Predictions of one request. A batchable route returns a list; this class names the list, as others do."""

    def model_dump_json(self, **_: Any) -> str:
        """Return the JSON body of the answer."""
        return json.dumps({"predictions": self.root})


@bentoml.service(workers=WORKERS, traffic={"timeout": 60})
class Batchable:
    """Service that returns the most probable class of a form's `image`."""

    def __init__(self) -> None:
        self.model = PeerModel()

    @bentoml.api(batchable=True, output_spec=Predictions, **LIMITS)  # type: ignore[untyped-decorator]
    def classify(self, image: list[Image]) -> list[dict[str, Any]]:
        """Classify one batch of images."""
        logits = self.model.infer(np.stack([self.model.pixels(picture) for picture in image]))
        return [prediction for row in logits for prediction in self.model.top(row)]
