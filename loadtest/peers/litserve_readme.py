"""LitServe as its README has it: `accelerator="auto"`, a batch size of 1, one function from the request to the answer.

Annotations are not deferred in this file: LitServe builds the route from the type of `request`.
"""

import sys
from typing import Any

import litserve
from fastapi import Request
from PIL import Image

from loadtest.peers.model import PeerModel


class InferenceEngine(litserve.LitAPI):  # type: ignore[misc]
    """API that returns the most probable class of a form's `image`."""

    def setup(self, device: str) -> None:
        """Load the model in the worker's process."""
        self.model = PeerModel()

    def decode_request(self, request: Request) -> Any:
        """Return the file of the form's `image`; a LitServe without this function reads JSON."""
        return request["image"].file

    def predict(self, file: Any) -> dict[str, Any]:
        """Return the answer for one image."""
        (logits,) = self.model.infer(self.model.pixels(Image.open(file))[None])
        return {"predictions": self.model.top(logits)}


if __name__ == "__main__":
    server = litserve.LitServer(InferenceEngine(max_batch_size=1), accelerator="auto")
    server.run(host="127.0.0.1", port=int(sys.argv[1]), generate_client_file=False)
