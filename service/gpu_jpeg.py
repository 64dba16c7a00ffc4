"""Decoding of JPEGs on the device: by a GPU whose pixels are Pillow's, or by none at a GPU's pace."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from engines.measured.gpu_jpegs import faithful_jpegs
from engines.published.plain_jpeg import SAMPLINGS, Sampling
from engines.published.preprocess import Preprocess
from engines.runtimes.engine import Engine, EngineError, GpuEngine
from engines.runtimes.null import PacedEngine
from engines.runtimes.tensorrt import gpu
from service.batches import JpegDecoder, Pixels

if TYPE_CHECKING:
    from engines.runtimes.gpu_jpeg.jpegs import GpuJpegs

logger = logging.getLogger("bentoml.convserve")


class GpuJpegDecoder:
    """Decoder of a GPU for the pictures of one engine."""

    def __init__(self, jpegs: GpuJpegs, samplings: frozenset[Sampling]) -> None:
        self._jpegs, self.samplings = jpegs, samplings

    def fill(self, bodies: Sequence[bytes | memoryview], pixels: Pixels | None, pointer: int, stream: int) -> list[int]:
        """Enqueue the writing of decoded JPEGs, and of pixels after them; return the places of the refused JPEGs."""
        refused = self._jpegs.fill(bodies, pointer, stream)
        if pixels is not None:
            self._jpegs.copy(pixels, pointer + len(bodies) * pixels[0].nbytes, stream)
        return refused


class PacedDecoder:
    """Decoder that decodes nothing, for the engine that computes nothing at a GPU's pace."""

    samplings = frozenset(SAMPLINGS)

    def fill(self, bodies: Sequence[bytes | memoryview], pixels: Pixels | None, pointer: int, stream: int) -> list[int]:
        """Return that no JPEG was refused."""
        return []


def open_decoder(engine: Engine, preprocess: Preprocess) -> JpegDecoder | None:
    """Return the decoder of an engine's device, or None if Pillow must decode for the engine."""
    if isinstance(engine, PacedEngine):
        return PacedDecoder()
    if not isinstance(engine, GpuEngine) or not (samplings := faithful_jpegs()):
        return None
    from engines.runtimes.gpu_jpeg.jpegs import GpuJpegs, can_preprocess

    if not can_preprocess(preprocess):
        return None
    try:
        return GpuJpegDecoder(GpuJpegs(gpu.device(), preprocess), samplings)
    except EngineError as error:
        logger.warning("JPEGs are decoded by Pillow: %s", error)
        return None
