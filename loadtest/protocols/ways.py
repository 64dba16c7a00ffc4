"""Requests of each way to ask, encoded before the run, and the labels in its answers."""

from __future__ import annotations

import base64
import io
import json
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from loadtest.peers.photos import HEADERS, multipart
from service.inference_protocol.messages import classes

MANY = 32  # images of a request of many
ONE, JSON_PIXELS = "/classify, a JPEG", "/v2, pixels in JSON"  # ways that the others are compared with
LABELS_ALONE = {"name": "probabilities", "parameters": {"classification": 1}}

Read = Callable[[bytes], list[str]]


@dataclass(frozen=True, kw_only=True)
class Way:
    """Way to ask: the bodies to send, each of so many `images`, and `read`, which returns an answer's labels.

    `path` is None for gRPC, where a body is a message. `beside` is the way that this one is compared with.
    """

    name: str
    path: str | None
    bodies: Sequence[bytes]
    read: Read
    headers: Mapping[str, str] = field(default_factory=dict)
    images: int = 1
    beside: str = ONE


def ways(model: str, files: Sequence[bytes], shape: Sequence[int], grpc: bool) -> list[Way]:
    """Return the ways to ask a model for the classes of JPEGs, whose graph takes pixels of a shape."""
    many = [[files[place % len(files)] for place in range(MANY)]]
    single = [[file] for file in files]
    pixels = [pixels_of(file, shape) for file in files]
    classify, infer = f"/classify?model={model}&top_k=1", f"/v2/models/{model}/infer"
    found = [
        Way(name=ONE, path=classify, bodies=files, read=read_predictions),
        over_http("/v2, a JPEG", infer, [jpegs(files) for files in single]),
        Way(
            name="/v2, a JPEG in base64",
            path=infer,
            bodies=[in_json(jpegs(files)[0], [base64.b64encode(*files).decode()]) for files in single],
            read=read_outputs,
        ),
        Way(
            name=f"/classify, {MANY} JPEGs",
            path=classify,
            bodies=[multipart([("photo.jpg", file) for file in files]) for files in many],
            headers=HEADERS,
            read=read_predictions,
            images=MANY,
        ),
        over_http(f"/v2, {MANY} JPEGs", infer, [jpegs(files) for files in many], images=MANY),
        Way(
            name=JSON_PIXELS,
            path=infer,
            bodies=[in_json(raw_pixels(array)[0], array.ravel().tolist()) for array in pixels],
            read=read_outputs,
            beside=JSON_PIXELS,
        ),
        over_http("/v2, pixels", infer, [raw_pixels(array) for array in pixels], beside=JSON_PIXELS),
    ]
    if grpc:
        found += [
            over_grpc("gRPC, a JPEG", model, [jpegs(files) for files in single]),
            over_grpc(f"gRPC, {MANY} JPEGs", model, [jpegs(files) for files in many], images=MANY),
            over_grpc("gRPC, pixels", model, [raw_pixels(array) for array in pixels], beside=JSON_PIXELS),
        ]
    return found


def pixels_of(file: bytes, shape: Sequence[int]) -> NDArray[np.uint8]:
    """Return a picture's pixels as (height, width, channels), squeezed to the size that the graph takes."""
    height, width, channels = shape
    picture = Image.open(io.BytesIO(file)).convert("L" if channels == 1 else "RGB").resize((width, height))
    return np.asarray(picture).reshape(shape)


def jpegs(files: Sequence[bytes]) -> tuple[dict[str, Any], bytes]:
    """Return the input `image` with these files, and its binary data."""
    raw = b"".join(struct.pack("<I", len(file)) + file for file in files)
    return {"name": "image", "shape": [len(files)], "datatype": "BYTES"}, raw


def raw_pixels(pixels: NDArray[np.uint8]) -> tuple[dict[str, Any], bytes]:
    """Return the input `pixels` with one picture, and its binary data."""
    return {"name": "pixels", "shape": [1, *pixels.shape], "datatype": "UINT8"}, pixels.tobytes()


def in_json(tensor: dict[str, Any], data: list[Any]) -> bytes:
    """Return the body of a request whose input is in JSON."""
    return json.dumps({"inputs": [tensor | {"data": data}], "outputs": [LABELS_ALONE]}).encode()


def over_http(name: str, path: str, tensors: Sequence[tuple[dict[str, Any], bytes]], **options: Any) -> Way:
    """Return the way whose inputs are binary data behind a head in JSON; the heads have one length."""
    heads = [
        json.dumps({"inputs": [tensor | {"parameters": {"binary_data_size": len(raw)}}], "outputs": [LABELS_ALONE]})
        for tensor, raw in tensors
    ]
    length = max(map(len, heads))
    bodies = [head.ljust(length).encode() + raw for head, (_, raw) in zip(heads, tensors, strict=True)]
    headers = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(length)}
    return Way(name=name, path=path, bodies=bodies, headers=headers, read=read_outputs, **options)


def over_grpc(name: str, model: str, tensors: Sequence[tuple[dict[str, Any], bytes]], **options: Any) -> Way:
    """Return the way whose inputs are raw contents of messages."""
    bodies = []
    for tensor, raw in tensors:
        message = classes()["ModelInfer"].request(model_name=model, inputs=[tensor], raw_input_contents=[raw])
        message.outputs.add(name="probabilities").parameters["classification"].int64_param = 1
        bodies.append(message.SerializeToString())
    return Way(name=name, path=None, bodies=bodies, read=read_message, **options)


def read_predictions(answer: bytes) -> list[str]:
    """Return the labels in an answer of /classify, to one image or to many."""
    found = json.loads(answer)
    return [image["predictions"][0]["label"] for image in found.get("images", [found])]


def read_outputs(answer: bytes) -> list[str]:
    """Return the labels in an answer of the Open Inference Protocol in JSON."""
    (output,) = json.loads(answer)["outputs"]
    return [text.split(":", 2)[2] for text in output["data"]]


def read_message(answer: bytes) -> list[str]:
    """Return the labels in an answer of gRPC: texts, each behind its length."""
    (raw,) = classes()["ModelInfer"].answer.FromString(answer).raw_output_contents
    labels = []
    while raw:
        (length,) = struct.unpack_from("<I", raw)
        labels.append(raw[4 : 4 + length].decode().split(":", 2)[2])
        raw = raw[4 + length :]
    return labels
