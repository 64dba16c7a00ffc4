"""Batches on a device: pixels, and JPEGs that the device decodes, into an engine, and logits out."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Awaitable, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from engines.published.plain_jpeg import Sampling
from engines.runtimes.engine import Engine, GpuEngine
from engines.runtimes.lanes import LANES
from engines.runtimes.tensorrt import gpu

logger = logging.getLogger("bentoml.convserve")
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

    def fill(self, bodies: Sequence[bytes | memoryview], pixels: Pixels | None, pointer: int, stream: int) -> list[int]:
        """Enqueue the writing of decoded JPEGs, and of pixels after them; return the places of the refused JPEGs.

        `pixels`, (N, height, width, channels), must last until the stream has passed.
        """


class Inputs(NamedTuple):
    """Inputs of one batch: an engine, the pictures, and the decoder for those that are JPEGs."""

    engine: Engine
    pictures: Sequence[Picture]
    decoder: JpegDecoder | None = None


Outcome = Logits | RefusedJpeg
RunBatch = Callable[[Inputs], Awaitable[Iterable[Outcome]]]


def run(inputs: Inputs) -> Iterable[Outcome]:
    """Run a batch, and return the logits, (classes,), of each picture, or RefusedJpeg.

    Raises RuntimeError if the inference fails.
    """
    engine, pictures, decoder = inputs
    jpegs = [picture.body for picture in pictures if isinstance(picture, Jpeg)]
    others = [picture for picture in pictures if not isinstance(picture, Jpeg)]
    if not jpegs:
        return engine.infer(np.stack(others))
    if not decoder:  # a front knew another engine
        of_others = iter(engine.infer(np.stack(others))) if others else iter(())
        return [RefusedJpeg() if isinstance(picture, Jpeg) else next(of_others) for picture in pictures]
    assert isinstance(engine, GpuEngine)
    pixels = np.stack(others) if others else None  # which lasts until the engine has answered
    refused: list[int] = []
    logits = engine.infer_filled(
        len(pictures), lambda pointer, stream: refused.extend(decoder.fill(jpegs, pixels, pointer, stream))
    )
    of_jpegs: list[Outcome] = list(logits[: len(jpegs)])
    for place in refused:
        of_jpegs[place] = RefusedJpeg()
    from_jpegs, from_pixels = iter(of_jpegs), iter(logits[len(jpegs) :])
    return [next(from_jpegs) if isinstance(picture, Jpeg) else next(from_pixels) for picture in pictures]


def in_threads() -> RunBatch:
    """Return a function that runs batches in threads, as many as the engine has lanes."""
    executors = {lanes: ThreadPoolExecutor(lanes, "device") for lanes in range(1, LANES + 1)}

    async def run_batch(inputs: Inputs) -> Iterable[Outcome]:
        """Run a batch; on a processor stack the pixels here, since Python in a thread would wait for this one."""
        loop, engine = asyncio.get_running_loop(), inputs.engine
        pixels = [picture for picture in inputs.pictures if not isinstance(picture, Jpeg)]
        try:
            if engine.lanes == 1 and len(pixels) == len(inputs.pictures):
                return await loop.run_in_executor(executors[1], engine.infer, np.stack(pixels))
            return await loop.run_in_executor(executors[engine.lanes], run, inputs)
        except Exception:
            end_if_lost(engine)
            raise

    return run_batch


def end_if_lost(engine: Engine) -> None:
    """End this process if CUDA can run nothing more in it, so that BentoML starts another one."""
    if isinstance(engine, GpuEngine) and gpu.context_lost():
        logger.critical("CUDA can run nothing more in this process, which ends and is started again")
        os.kill(os.getpid(), signal.SIGKILL)
