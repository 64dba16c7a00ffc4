"""Photos to send: JPEGs, each encoded once as a request's body, so that every request costs the client the same."""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import requests

from loadtest.traffic import LabelledImage, ScenarioError, is_meant, legible, read_label

if TYPE_CHECKING:
    from locust.contrib.fasthttp import FastResponse

NAMES = (  # photos that scikit-image contains, without a download
    "astronaut",
    "camera",
    "chelsea",
    "coffee",
    "coins",
    "hubble_deep_field",
    "immunohistochemistry",
    "moon",
    "retina",
    "rocket",
)
FOLDER = Path("images/photos")
QUALITY = 90
BOUNDARY = "convserve-peers"
HEADERS = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}


def find_photos(folder: Path) -> list[Path]:
    """Return the JPEGs of a folder; the default folder is created from scikit-image's photos.

    Raises ScenarioError if there are none.
    """
    if folder == FOLDER and not folder.exists():
        write_photos(folder)
    jpegs = (path for path in folder.glob("*") if path.suffix.lower() in {".jpg", ".jpeg"})
    paths = sorted(path for path in jpegs if is_meant(path, folder))
    if not paths:
        raise ScenarioError(f"no .jpg in {folder}")
    return paths


def write_photos(folder: Path) -> None:
    """Write scikit-image's photos as JPEGs, all of them or none."""
    import skimage.data
    from PIL import Image

    work = folder.with_name(f"{folder.name}.part")
    work.mkdir(parents=True, exist_ok=True)
    for name in NAMES:
        Image.fromarray(getattr(skimage.data, name)()).save(work / f"{name}.jpg", quality=QUALITY)
    work.rename(folder)


def form(path: Path, label: str) -> LabelledImage:
    """Return a multipart form with the photo as its part `image`."""
    return LabelledImage(multipart([(path.name, path.read_bytes())]), label)


def multipart(photos: Sequence[tuple[str, bytes]]) -> bytes:
    """Return a multipart form with a part `image` for each photo, of its file's name and bytes."""
    disposition = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="image"; filename='
    heads = (f'{disposition}"{legible(name)}"\r\nContent-Type: image/jpeg\r\n\r\n' for name, _ in photos)
    parts = (head.encode() + photo + b"\r\n" for head, (_, photo) in zip(heads, photos, strict=True))
    return b"".join(parts) + f"--{BOUNDARY}--\r\n".encode()


def tensor(path: Path, label: str) -> LabelledImage:
    """Return a photo's bytes as the body of a raw binary request of Triton's."""
    return LabelledImage(path.read_bytes(), label)


def read_tensors(response: FastResponse) -> str:
    """Return the label of an answer of Triton's: JSON, then the label's bytes and the probability, a float32.

    Raises ValueError if the answer is not well formed.
    """
    body = response.content or b""
    head = int(str(response.headers.get("Inference-Header-Content-Length") or 0)) if response.headers else 0
    if response.status_code != requests.codes.ok or not 0 < head < len(body) - 4:
        raise ValueError(f"{response.status_code}: {body[:200]!r}")
    (probability,) = struct.unpack("<f", body[-4:])
    if not 0 <= probability <= 1:
        raise ValueError(f"malformed answer: {body[:200]!r}")
    return body[head:-4].decode()


def base64_tensor(path: Path, label: str) -> LabelledImage:
    """Return a photo as a JSON request of the Open Inference Protocol, in base64, as MLServer takes bytes over HTTP."""
    image = {"name": "image", "shape": [1], "datatype": "BYTES", "parameters": {"content_type": "base64"}}
    data = [base64.b64encode(path.read_bytes()).decode()]
    return LabelledImage(json.dumps({"inputs": [image | {"data": data}]}).encode(), label)


def read_json_tensors(response: FastResponse) -> str:
    """Return the label of a JSON answer with the outputs `label` and `probability`.

    Raises ValueError if the answer is not well formed.
    """
    if response.status_code == requests.codes.ok:
        with suppress(KeyError, TypeError, ValueError):
            outputs = {output["name"]: output["data"] for output in response.json()["outputs"]}
            (label,), (probability,) = outputs["label"], outputs["probability"]
            if 0 <= probability <= 1:
                return str(label)
    raise ValueError(f"{response.status_code}: {response.text}"[:200])


@dataclass(frozen=True)
class Encoding:
    """Form of a request and of its answer: `encode` makes the body of a photo, `read` finds the label."""

    encode: Callable[[Path, str], LabelledImage]
    headers: Mapping[str, str]
    read: Callable[[FastResponse], str]


ENCODINGS = {
    "form": Encoding(form, HEADERS, read_label),
    "base64": Encoding(base64_tensor, {"Content-Type": "application/json"}, read_json_tensors),
    "triton": Encoding(
        tensor, {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": "0"}, read_tensors
    ),
}
