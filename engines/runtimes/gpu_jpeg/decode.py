"""Decoding of batches of JPEGs by NVIDIA's nvImageCodec into memory of our own, a bounded number of bytes at a time."""

from __future__ import annotations

import logging
import os
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any, NamedTuple, Protocol

import numpy as np

from engines.published.preprocess import Preprocess
from engines.runtimes.engine import EngineError
from engines.runtimes.gpu_jpeg.kernel import Decoded

ALIGNMENT = 256  # bytes between the beginnings of two pictures
ATTEMPTS = 40  # of decoding parts of a batch: 128 JPEGs with one that is broken need 15, with three at most 37
PACE = 60.0  # seconds between two messages of a lane that there is no memory
MISSING = "nvImageCodec is not installed: pip install '.[gpu-jpeg]'"
logger = logging.getLogger("bentoml.convserve")


@cache
def library() -> Any:
    """Return NVIDIA's module nvimgcodec. Raises EngineError if it is not installed."""
    # Otherwise every broken JPEG that somebody sends prints two coloured lines.
    os.environ.setdefault("PYNVIMGCODEC_VERBOSITY", "0")
    try:
        return import_module("nvidia.nvimgcodec")
    except ImportError as error:
        raise EngineError(MISSING) from error


class Canvas(Protocol):
    """Memory for decoded pictures, and the resizing of pictures in this memory."""

    @property
    def capacity(self) -> int:
        """Most bytes of pictures that are decoded at a time."""

    def begin(self, size: int) -> int:
        """Wait until the memory is no longer read, make `size` bytes of zeros, and return their address.

        Raises MemoryError if there is no memory.
        """

    def image(self, address: int, height: int, width: int) -> Any:
        """Return an object by which nvImageCodec finds the pixels of a picture at an address."""

    def resize(self, preprocess: Preprocess, pictures: Sequence[Decoded], pointer: int, stream: int) -> None:
        """Enqueue the resizing of decoded pictures into the output at `pointer`."""

    def settle(self, stream: int) -> None:
        """Wait for all work of a stream."""

    def end(self, stream: int) -> None:
        """Note that the memory is read until the work that the stream has now is done."""


@dataclass(frozen=True)
class Coded:
    """JPEG that waits for its decoding: nvImageCodec's stream of its bytes, its size, and its place in the batch."""

    code: Any
    width: int
    height: int
    place: int

    @property
    def size(self) -> int:
        """Number of bytes of the decoded picture, rounded up to the alignment."""
        return -(-3 * self.width * self.height // ALIGNMENT) * ALIGNMENT


class Placed(NamedTuple):
    """JPEG to be decoded, and the picture that comes of it."""

    code: Any
    picture: Decoded


class JpegLane:
    """Decoder with its memory, for one thread at a time."""

    def __init__(self, canvas: Canvas, backend: str, device_id: int, threads: int) -> None:
        """Make the decoder of a backend, a name of nvImageCodec's BackendKind. Raises nearly anything if it cannot."""
        codec = library()
        self._canvas = canvas
        kind = codec.Backend(getattr(codec.BackendKind, backend))
        self._decoder = codec.Decoder(device_id=device_id, max_num_cpu_threads=threads, backends=[kind])
        self._silent_until = 0.0
        self._params = codec.DecodeParams(apply_exif_orientation=False, color_spec=codec.ColorSpec.SRGB)

    def fill(
        self, preprocess: Preprocess, bodies: Sequence[bytes | memoryview], pointer: int, stream: int
    ) -> list[int]:
        """Decode JPEGs, and enqueue the writing of their input pixels, (N, height, width, channels), at `pointer`.

        Returns the places of the JPEGs that were not decoded, whose pixels are undefined.
        """
        refused = set(range(len(bodies)))
        for group in self._groups(bodies):
            size = sum(picture.size for picture in group)
            try:
                address = self._canvas.begin(size)
            except MemoryError as error:
                self._log(error)
                continue
            try:
                decoded = self._decode(placed(group, address), stream)
                if decoded:
                    self._canvas.resize(preprocess, decoded, pointer, stream)
            finally:
                self._canvas.end(stream)
            refused.difference_update(picture.place for picture in decoded)
        return sorted(refused)

    def _log(self, error: MemoryError) -> None:
        """Log that there is no memory, at most once in PACE seconds."""
        if time.monotonic() >= self._silent_until:
            self._silent_until = time.monotonic() + PACE
            logger.warning("no GPU memory to decode JPEGs, which Pillow decodes instead: %s", error)

    def _groups(self, bodies: Sequence[bytes | memoryview]) -> Iterator[list[Coded]]:
        """Yield the JPEGs whose header can be read, in groups of at most the memory's capacity."""
        group: list[Coded] = []
        size = 0
        for place, body in enumerate(bodies):
            code = library().CodeStream(np.frombuffer(body, np.uint8))
            try:
                picture = Coded(code, code.width, code.height, place)
            except RuntimeError:  # no JPEG that can be read
                continue
            if picture.size > self._canvas.capacity:
                continue
            if group and size + picture.size > self._canvas.capacity:
                yield group
                group, size = [], 0
            group.append(picture)
            size += picture.size
        if group:
            yield group

    def _decode(self, pictures: Sequence[Placed], stream: int) -> list[Decoded]:
        """Return the pictures that were decoded.

        One broken JPEG may fail all that are decoded with it, so the failed are tried again in halves.
        """
        decoded: list[Decoded] = []
        waiting = deque([pictures])
        for _ in range(ATTEMPTS):
            if not waiting:
                break
            part = waiting.popleft()
            results = self._results(part, stream)
            decoded += [to for (_, to), result in zip(part, results, strict=True) if result is not None]
            failed = [picture for picture, result in zip(part, results, strict=True) if result is None]
            if failed:
                self._canvas.settle(stream)  # the failed may still be written
            if len(part) > 1:
                middle = len(failed) // 2
                waiting += filter(None, (failed[:middle], failed[middle:]))
        return decoded

    def _results(self, part: Sequence[Placed], stream: int) -> list[Any]:
        """Decode JPEGs to their places at once; return nvImageCodec's result for each, None if it was not decoded."""
        images = [
            library().as_image(self._canvas.image(to.pixels, to.height, to.width), cuda_stream=stream) for _, to in part
        ]
        codes = [code for code, _ in part]
        results: list[Any] = self._decoder.decode(codes, images=images, params=self._params, cuda_stream=stream)
        return results


def placed(group: Sequence[Coded], address: int) -> list[Placed]:
    """Return the JPEGs of a group with the addresses of their pixels, one after another from an address."""
    places = []
    for coded in group:
        places.append(Placed(coded.code, Decoded(address, coded.width, coded.height, coded.place)))
        address += coded.size
    return places
