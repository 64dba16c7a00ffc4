"""KServe's client, run by a test in an environment of its own: asks a server over HTTP and gRPC, and prints answers.

Run as `python kserve_client.py URL GRPC_ADDRESS FILE...`; prints one JSON object.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from kserve import InferenceGRPCClient, InferenceRESTClient, InferInput, InferRequest, RESTConfig


def request(name: str, array: Any, datatype: str, *, binary: bool) -> Any:
    """Return the request of lenet5's answers to one input."""
    tensor = InferInput(name, list(array.shape), datatype)
    tensor.set_data_from_numpy(array, binary_data=binary)
    return InferRequest(model_name="lenet5", infer_inputs=[tensor])


def answers(response: Any) -> list[int]:
    """Return the most probable class of each image."""
    (found,) = (output for output in response.outputs if output.name == "probabilities")
    return found.as_numpy().argmax(1).tolist()  # type: ignore[no-any-return]


async def ask(url: str, address: str, files: list[bytes]) -> dict[str, Any]:
    """Ask for all files at once and for black pixels, over HTTP and gRPC, and for a model that is not there."""
    client, grpc = InferenceRESTClient(RESTConfig(protocol="v2")), InferenceGRPCClient(address)
    images = request("image", np.array(files, dtype=object), "BYTES", binary=True)
    black = np.zeros((2, 32, 32, 1), np.uint8)
    found: dict[str, Any] = {
        "ready": [await client.is_server_ready(url), await client.is_model_ready(url, "lenet5")],
        "http": answers(await client.infer(url, images, model_name="lenet5")),
        "grpc_ready": [await grpc.is_server_ready(), await grpc.is_model_ready("lenet5")],
        "grpc": answers(await grpc.infer(images)),
        "black": [
            answers(await client.infer(url, request("pixels", black, "UINT8", binary=binary), model_name="lenet5"))
            for binary in (False, True)
        ],
    }
    try:
        await client.infer(url, images, model_name="senet154")
    except httpx.HTTPStatusError as error:
        found["error"] = str(error)
    return found


if __name__ == "__main__":
    paths = [Path(path).read_bytes() for path in sys.argv[3:]]
    print(json.dumps(asyncio.run(ask(sys.argv[1], sys.argv[2], paths))))
