"""FastAPI with a `def` route, which runs in FastAPI's thread pool, and a lock around the model."""

from __future__ import annotations

from threading import Lock
from typing import Any

from fastapi import FastAPI, UploadFile
from PIL import Image

from loadtest.peers.model import PeerModel

app = FastAPI()
model = PeerModel(batches=[1])
lock = Lock()


@app.post("/classify")
def classify(image: UploadFile) -> dict[str, Any]:
    """Return the most probable class of a form's `image`."""
    pixels = model.pixels(Image.open(image.file))
    with lock:
        (logits,) = model.infer(pixels[None])
    return {"predictions": model.top(logits)}
