"""FastAPI: a `def` route, which runs in its pool of threads, and a lock about the model."""

from __future__ import annotations

from threading import Lock
from typing import Any

from fastapi import FastAPI, UploadFile
from PIL import Image

from loadtest.peers.model import Model

app = FastAPI()
model = Model(batches=[1])
lock = Lock()


@app.post("/classify")
def classify(image: UploadFile) -> dict[str, Any]:
    """The most probable class of a form's `image`."""
    pixels = model.pixels(Image.open(image.file))
    with lock:
        (logits,) = model.infer(pixels[None])
    return {"predictions": model.top(logits)}
