"""Model of Triton's Python backend: a batch of JPEGs in, labels and probabilities out.

Triton imports this module from its model folder, in a process for each instance. Tensors go by DLPack, since the wheel
reads arrays by the layout of NumPy 1.
"""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from loadtest.peers.model import PeerModel
from loadtest.peers.torch_network import from_numpy

DECODERS = 2  # threads of an instance; there are WORKERS instances


class TritonPythonModel:
    """Network and decoding threads of one instance."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the network, and start the threads that decode."""
        self.model = PeerModel()
        self.pool = ThreadPoolExecutor(DECODERS)

    def execute(self, requests: list[Any]) -> list[Any]:
        """Return a response for each request, of one image each, after one run of the network."""
        # Triton has this module in the path of its processes.
        import triton_python_backend_utils as triton  # type: ignore[import-not-found]

        images = [triton.get_input_tensor_by_name(request, "image") for request in requests]
        batch = self.model.infer(np.stack(list(self.pool.map(self.pixels, images))))
        responses = []
        for logits in batch:
            (prediction,) = self.model.top(logits)
            label = from_numpy(np.array([[*prediction["label"].encode()]], np.uint8))
            probability = from_numpy(np.array([[prediction["probability"]]], np.float32))
            tensors = [triton.Tensor.from_dlpack("label", label), triton.Tensor.from_dlpack("probability", probability)]
            responses.append(triton.InferenceResponse(tensors))
        return responses

    def pixels(self, image: Any) -> NDArray[np.uint8]:
        """Decode and resize one JPEG, a tensor of Triton's with the file's bytes."""
        return self.model.pixels(Image.open(io.BytesIO(np.from_dlpack(image).tobytes())))
