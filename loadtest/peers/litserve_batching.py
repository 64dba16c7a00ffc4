"""LitServe with batching: a thread pool decodes the images, as in LitServe's own benchmark of image classifiers.

Annotations are not deferred in this file: LitServe builds the route from the type of `request`.
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

from loadtest.peers.model import MAX_BATCH, PeerModel

BATCH_TIMEOUT_S = 0.01  # of LitServe's benchmark; with the default, 0, an idle worker keeps a core busy


class LitServeClassifier(litserve.LitAPI):  # type: ignore[misc]
    """API that returns the most probable class of a form's `image`."""

    def setup(self, device: str) -> None:
        """Load the model in the worker's process."""
        self.model = PeerModel()
        self.pool = ThreadPoolExecutor(os.cpu_count())

    def decode_request(self, request: Request) -> Any:
        """Return the file of the form's `image`."""
        return request["image"].file

    def batch(self, inputs: list[Any]) -> NDArray[np.uint8]:
        """Decode files to a batch of pixels."""
        return np.stack(list(self.pool.map(lambda file: self.model.pixels(Image.open(file)), inputs)))

    def predict(self, x: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the logits of a batch, (N, classes)."""
        return self.model.infer(x)

    def unbatch(self, output: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        """Split a batch into its images."""
        return list(output)

    def encode_response(self, output: NDArray[np.float32]) -> dict[str, Any]:
        """Return the answer for the logits of one image."""
        return {"predictions": self.model.top(output)}


if __name__ == "__main__":
    api = LitServeClassifier(max_batch_size=MAX_BATCH, batch_timeout=BATCH_TIMEOUT_S, api_path="/classify")
    server = litserve.LitServer(api, accelerator="cpu")
    server.run(host="127.0.0.1", port=int(sys.argv[1]), generate_client_file=False)
