"""Upper bounds on the throughput of any server: the engine alone, and decoding with the engine, both without HTTP.

`python -m loadtest.peers.upper_bound NAME CONNECTIONS WARM_UP_S SECONDS PHOTO...` prints JSON; the environment names
the model, as for a peer.
"""

from __future__ import annotations

import itertools
import json
import queue
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
from numpy.typing import NDArray

from loadtest.peers.model import MAX_BATCH, PeerModel, PeerPhotos
from loadtest.tally import Tally

DECODERS = 2  # threads, as in convserve

UpperBound = Callable[[PeerModel, PeerPhotos, int, float], Tally]


def engine(model: PeerModel, photos: PeerPhotos, connections: int, seconds: float) -> Tally:
    """Run batches of `connections` images, MAX_BATCH at most; the latency of an image is that of its batch."""
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


def decode_engine(model: PeerModel, photos: PeerPhotos, connections: int, seconds: float) -> Tally:
    """Keep `connections` images in work: DECODERS threads decode; the engine runs MAX_BATCH decoded images at most."""
    tally = Tally()
    waiting: queue.SimpleQueue[tuple[NDArray[np.uint8], str, float]] = queue.SimpleQueue()

    def decode(body: bytes, label: str, since: float) -> None:
        waiting.put((photos.decode(body), label, since))

    with ThreadPoolExecutor(DECODERS) as decoders:
        started = time.perf_counter()
        for _ in range(connections):
            decoders.submit(decode, *next(photos.bodies), started)
        in_work = connections
        while in_work:
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
                    in_work -= 1
    tally.seconds = seconds
    return tally


UPPER_BOUNDS: dict[str, UpperBound] = {"engine": engine, "decode_engine": decode_engine}


def main() -> None:
    """Warm up, measure one upper bound, and print its tally, processor time and memory as JSON."""
    name, connections, warm_up, seconds, *paths = sys.argv[1:]
    bound, model = UPPER_BOUNDS[name], PeerModel()
    photos = PeerPhotos(model, [Path(path) for path in paths])
    bound(model, photos, int(connections), float(warm_up))
    process = psutil.Process()
    before = process.cpu_times()
    tally = bound(model, photos, int(connections), float(seconds))
    after = process.cpu_times()
    cpu_s = after.user + after.system - before.user - before.system
    print(json.dumps({"tally": tally.dump(), "cpu_s": cpu_s, "pss_bytes": process.memory_full_info().pss}))


if __name__ == "__main__":
    main()
