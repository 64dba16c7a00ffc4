"""MLServer with a runtime of its own: `python -m loadtest.peers.mlserver_photos PORT`.

As installed it runs one image at a time; else it batches adaptively. Its other settings are MLServer's own.
"""

from __future__ import annotations

import asyncio
import io
import os
import sys
import tempfile

import numpy as np
from mlserver import MLModel, MLServer, ModelSettings, Settings
from mlserver.codecs import Base64Codec, NumpyCodec, StringCodec
from mlserver.types import InferenceRequest, InferenceResponse
from PIL import Image

from loadtest.peers import AS_INSTALLED
from loadtest.peers.model import MAX_BATCH, PeerModel

BATCHES = {} if os.environ["PEER_PRECISION"] == AS_INSTALLED else {"max_batch_size": MAX_BATCH, "max_batch_time": 0.01}


class Photos(MLModel):  # type: ignore[misc]
    """Runtime from the BYTES tensor `image`, of JPEGs in base64, to the most probable class of each."""

    async def load(self) -> bool:
        """Load the model in MLServer's process for inference."""
        self.model = PeerModel()
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Classify the images of one request, or of several that MLServer has merged."""
        files = Base64Codec.decode_input(payload.inputs[0])
        pixels = np.stack([self.model.pixels(Image.open(io.BytesIO(file))) for file in files])
        tops = [self.model.top(logits)[0] for logits in self.model.infer(pixels)]
        outputs = [
            StringCodec.encode_output("label", [top["label"] for top in tops]),
            NumpyCodec.encode_output("probability", np.array([[top["probability"]] for top in tops], np.float32)),
        ]
        return InferenceResponse(model_name=self.name, outputs=outputs)


async def serve(port: int, folder: str) -> None:
    """Serve the model `photos` until the end of the process; gRPC and metrics have free ports."""
    ports = {"http_port": port, "grpc_port": 0, "metrics_port": 0}
    settings = Settings(host="127.0.0.1", **ports, metrics_dir=folder, environments_dir=folder)
    photos = ModelSettings(name="photos", implementation="loadtest.peers.mlserver_photos.Photos", **BATCHES)
    await MLServer(settings).start([photos])


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(serve(int(sys.argv[1]), folder))
