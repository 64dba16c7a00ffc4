"""LitServe with batching: images are decoded by a pool of threads, as in its own benchmark of image classifiers.

Its annotations are not deferred: LitServe makes the route of the type that stands at `request`.
"""

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import litserve
import numpy as np
from fastapi import Request
from numpy.typing import NDArray
from PIL import Image

from loadtest.peers.model import MAX_BATCH, Model

BATCH_TIMEOUT_S = 0.01  # its benchmark's; with its default, 0, an idle worker keeps a core busy


class Classifier(litserve.LitAPI):  # type: ignore[misc]
    """The most probable class of a form's `image`."""

    def setup(self, device: str) -> None:
        """In the worker's process."""
        self.model = Model()
        self.pool = ThreadPoolExecutor(os.cpu_count())

    def decode_request(self, request: Request) -> Any:
        """The file."""
        return request["image"].file

    def batch(self, inputs: list[Any]) -> NDArray[np.uint8]:
        """Files -> pixels."""
        return np.stack(list(self.pool.map(lambda file: self.model.pixels(Image.open(file)), inputs)))

    def predict(self, x: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Pixels -> logits."""
        return self.model.infer(x)

    def unbatch(self, output: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        """One by one."""
        return list(output)

    def encode_response(self, output: NDArray[np.float32]) -> dict[str, Any]:
        """Logits -> answer."""
        return {"predictions": self.model.top(output)}


if __name__ == "__main__":
    api = Classifier(max_batch_size=MAX_BATCH, batch_timeout=BATCH_TIMEOUT_S, api_path="/classify")
    server = litserve.LitServer(api, accelerator="cpu")
    server.run(host="127.0.0.1", port=int(sys.argv[1]), generate_client_file=False)
