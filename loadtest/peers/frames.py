"""Without HTTP: the engine alone, and decoding with the engine, which is the most that a server could reach.

`python -m loadtest.peers.frames FRAME CONNECTIONS WARM_UP_S SECONDS PHOTO...`, in a peer's environment, prints JSON.
"""

from __future__ import annotations

import io
import itertools
import json
import queue
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
from numpy.typing import NDArray
from PIL import Image

from loadtest.peers.model import MAX_BATCH, Model
from loadtest.tally import Tally

DECODERS = 2  # threads, as in convserve

Frame = Callable[[Model, "Photos", int, float], Tally]


class Photos:
    """Over and over, each with the label that the engine gives it alone."""

    def __init__(self, model: Model, paths: list[Path]) -> None:
        self._model = model
        bodies = [path.read_bytes() for path in paths]
        pixels = [self.decode(body) for body in bodies]
        self.labels = [model.top(model.infer(one[None])[0])[0]["label"] for one in pixels]
        self.labelled = list(zip(pixels, self.labels, strict=True))
        self.bodies: Iterator[tuple[bytes, str]] = itertools.cycle(zip(bodies, self.labels, strict=True))

    def decode(self, body: bytes) -> NDArray[np.uint8]:
        """JPEG -> pixels."""
        return self._model.pixels(Image.open(io.BytesIO(body)))


def engine(model: Model, photos: Photos, connections: int, seconds: float) -> Tally:
    """A batch of `connections` images, 32 at most, again and again; an image takes as long as its batch."""
    tally = Tally()
    labelled = itertools.islice(itertools.cycle(photos.labelled), min(connections, MAX_BATCH))
    pixels, labels = (list(column) for column in zip(*labelled, strict=True))
    batch = np.stack(pixels)
    started = time.perf_counter()
    while (since := time.perf_counter()) < started + seconds:
        logits = model.infer(batch)
        took = time.perf_counter() - since
        for row, label in zip(logits, labels, strict=True):
            tally.answer(took, model.top(row)[0]["label"] == label)
    tally.seconds = time.perf_counter() - started
    return tally


def decode_engine(model: Model, photos: Photos, connections: int, seconds: float) -> Tally:
    """Always so many images under way: two threads decode; the engine, when free, takes all that wait, 32 at most."""
    tally = Tally()
    waiting: queue.SimpleQueue[tuple[NDArray[np.uint8], str, float]] = queue.SimpleQueue()

    def decode(body: bytes, label: str, since: float) -> None:
        waiting.put((photos.decode(body), label, since))

    with ThreadPoolExecutor(DECODERS) as decoders:
        started = time.perf_counter()
        for _ in range(connections):
            decoders.submit(decode, *next(photos.bodies), started)
        under_way = connections
        while under_way:
            batch = [waiting.get()]
            while len(batch) < MAX_BATCH and not waiting.empty():
                batch.append(waiting.get())
            logits = model.infer(np.stack([pixels for pixels, _, _ in batch]))
            now = time.perf_counter()
            for row, (_, label, since) in zip(logits, batch, strict=True):
                if now < started + seconds:
                    tally.answer(now - since, model.top(row)[0]["label"] == label)
                    decoders.submit(decode, *next(photos.bodies), time.perf_counter())
                else:
                    under_way -= 1
    tally.seconds = seconds
    return tally


FRAMES: dict[str, Frame] = {"engine": engine, "decode_engine": decode_engine}


def main() -> None:
    """Warm up, measure one frame, and tell."""
    name, connections, warm_up, seconds, *paths = sys.argv[1:]
    frame, model = FRAMES[name], Model()
    photos = Photos(model, [Path(path) for path in paths])
    frame(model, photos, int(connections), float(warm_up))
    process = psutil.Process()
    before = process.cpu_times()
    tally = frame(model, photos, int(connections), float(seconds))
    after = process.cpu_times()
    cpu_s = after.user + after.system - before.user - before.system
    print(json.dumps({"tally": tally.dump(), "cpu_s": cpu_s, "pss_bytes": process.memory_full_info().pss}))


if __name__ == "__main__":
    main()
