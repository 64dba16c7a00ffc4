"""Batches on a device: pixels, and JPEGs that the device decodes, into an engine, and logits out."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from engines.published.plain_jpeg import Sampling
from engines.runtimes.engine import Engine, GpuEngine
from engines.runtimes.lanes import LANES

Pixels = NDArray[np.uint8]
Logits = NDArray[np.float32]


class Jpeg(NamedTuple):
    """Bytes of a plain JPEG without metadata, which the device decodes."""

    body: bytes | memoryview


Picture = Pixels | Jpeg


class RefusedJpeg(Exception):
    """Raised for a JPEG that the device's decoder refuses; Pillow may decode the picture, or say what is wrong."""


class JpegDecoder(Protocol):
    """Decoder on a device, from the bytes of JPEGs to the pixels in an engine's input."""

    samplings: frozenset[Sampling]

    def fill(
        self, bodies: Sequence[bytes | memoryview], pixels: Sequence[Pixels], pointer: int, stream: int
    ) -> list[int]:
        """Enqueue the writing of decoded JPEGs, and of pixels after them; return the places of the refused JPEGs."""


class Inputs(NamedTuple):
    """Inputs of one batch: an engine, the pictures, and the decoder for those that are JPEGs."""

    engine: Engine
    pictures: Sequence[Picture]
    decoder: JpegDecoder | None = None


Outcome = Logits | RefusedJpeg
Device = Callable[[Inputs], Awaitable[Sequence[Outcome]]]


def run(inputs: Inputs) -> Sequence[Outcome]:
    """Run a batch, and return the logits, (classes,), of each picture, or RefusedJpeg.

    Raises RuntimeError if the inference fails.
    """
    engine, pictures, decoder = inputs
    bodies = [picture.body for picture in pictures if isinstance(picture, Jpeg)]
    pixels = [picture for picture in pictures if not isinstance(picture, Jpeg)]
    if not bodies:
        return list(engine.infer(np.stack(pixels)))
    assert decoder
    assert isinstance(engine, GpuEngine)
    refused: list[int] = []
    logits = engine.infer_filled(
        len(pictures), lambda pointer, stream: refused.extend(decoder.fill(bodies, pixels, pointer, stream))
    )
    of_jpegs: list[Outcome] = list(logits[: len(bodies)])
    for place in refused:
        of_jpegs[place] = RefusedJpeg()
    from_jpegs, from_pixels = iter(of_jpegs), iter(logits[len(bodies) :])
    return [next(from_jpegs) if isinstance(picture, Jpeg) else next(from_pixels) for picture in pictures]


def threaded_device() -> Device:
    """Return a device whose batches run in threads, as many as an engine has lanes at most."""
    executor = ThreadPoolExecutor(LANES, "device")

    async def on_thread(inputs: Inputs) -> Sequence[Outcome]:
        return await asyncio.get_running_loop().run_in_executor(executor, run, inputs)

    return on_thread
