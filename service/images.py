"""Decoding of untrusted image bytes into the input pixels of networks."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from math import exp2
from threading import Event
from time import monotonic, perf_counter

from PIL import Image
from PIL.ImageFile import ImageFile

from engines.published.essentials import Essentials, essentials
from engines.published.picture import keep_freed_memory, open_picture, upright
from engines.published.plain_jpeg import Sampling, sampling_of
from engines.published.preprocess import Preprocess, draft
from service.batches import Jpeg, Pixels
from service.body import image_of
from service.errors import Problem
from service.framework_patches import keep_pillows_memory, silence_pillow

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "WEBP")
SIGNATURES = (b"BM", b"GIF8", b"\xff\xd8\xff", b"\x89PNG")
SMALL = 8192, 64 * 64  # bytes and pixels; such an image decodes in a fraction of a millisecond
MEDIUM = 128 * 1024, 640 * 480  # bytes and pixels; such an image decodes in some milliseconds
INSPECTED, MARKERS = 256 * 1024, 500  # bytes and markers of a JPEG whose header is inspected on the event loop
MAX_SCANS = 200  # in a JPEG; cameras and editors write ten, and each costs a pass over all pixels
MAX_EDGE = 65_535  # pixels, as in a JPEG; Pillow needs sixty bytes for each row of a picture of one column
MAX_SCANNED = 1_000_000_000  # pixels times scans in a JPEG: twenty scans of 50 megapixels
ARITHMETIC = 20  # Huffman-coded scans that cost as much as an arithmetic-coded one
LEARNING = 0.1  # share by which one image moves the mean
HALF_LIFE_S = 30  # in which the mean halves while no image is decoded, since slow decodings may be of a busy past

silence_pillow()
keep_pillows_memory()
keep_freed_memory()


class ImageBytes(io.BytesIO):
    """Bytes of an image; reading raises RequestOver once the request is over.

    Pillow reads JPEG, PNG, GIF and BMP by blocks of 64 kB, so that their decoding ends within a block. One block, a
    WebP as a whole, a JPEG's last pass and the conversion for one model cannot be interrupted. The worst that were
    found of 50 megapixels, a PNG with alpha and a turned WebP, took 2.5 and 2.1 s in all on a busy core of 2026.
    """

    def __init__(self, body: bytes, over: Event) -> None:
        super().__init__(body)
        self._over = over

    def read(self, size: int | None = -1, /) -> bytes:
        """Return the next bytes. Raises RequestOver if nobody waits for them."""
        check_wanted(self._over)
        return super().read(size)


class RequestOver(Exception):
    """Raised in a decoder's thread to end its work: the request was answered, or its client has disconnected."""


def check_wanted(over: Event) -> None:
    """Raise RequestOver if the request is over."""
    if over.is_set():
        raise RequestOver


def is_picture(body: bytes) -> bool:
    """Return True if a body begins as a file in a supported format does."""
    return body.startswith(SIGNATURES) or (body[:4] == b"RIFF" and body[8:12] == b"WEBP")


def opened(body: bytes, max_pixels: int, over: Event | None = None) -> ImageFile:
    """Return a picture after reading only its header. The content decides the format, not a file name or media type.

    Reading and decoding the picture raises RequestOver once `over` is set. Raises Problem 400 if the body is empty or
    broken, 413 for too many pixels, 415 for an unsupported format.
    """
    if not body:
        raise Problem(400, "empty_image", "the body is empty; send the bytes of an image")
    if not is_picture(body):
        raise Problem(415, "unsupported_format", f"not an image in a supported format: {', '.join(FORMATS)}")
    source = partial(ImageBytes, over=over) if over else io.BytesIO
    try:
        parts = essentials(body)
        picture = open_picture(parts, FORMATS, source)
        if max(picture.size) > MAX_EDGE:
            raise Problem(413, "too_many_pixels", f"an edge of the image has more than {MAX_EDGE:,} pixels")
        if picture.width * picture.height <= max_pixels:
            check_cost(picture, parts)
            return picture
    except (Problem, RequestOver):
        raise
    except Image.DecompressionBombError:
        pass
    except Exception as error:  # Pillow raises nearly anything on bytes made to break it
        raise broken(error) from error
    raise Problem(413, "too_many_pixels", f"the image has more than {max_pixels:,} pixels")


def check_cost(picture: ImageFile, parts: Essentials) -> None:
    """Raise Problem 400 or 415 if decoding would take far longer than the picture's size suggests.

    A scan takes up to 0.4 ms per megapixel, one of arithmetic coding 3.4 ms and more, on a core of 2026.
    """
    # A JPEG is decoded in blocks of up to 32 pixels each way, which count where the picture is thin.
    scanned = parts.scans * (ARITHMETIC if parts.arithmetic else 1) * (picture.width + 31) * (picture.height + 31)
    if parts.scans > MAX_SCANS or scanned > MAX_SCANNED:
        detail = f"the image cannot be decoded: its {parts.scans} scans are too many for its size"
        raise Problem(400, "broken_image", detail)
    if any(tile.codec_name == "bmp_rle" for tile in picture.tile):  # Pillow decodes RLE in Python, slowly
        raise Problem(415, "unsupported_format", "a BMP must not be compressed")


def decode(
    picture: ImageFile, preprocesses: Sequence[Preprocess], *, scaled: bool, over: Event | None = None
) -> list[Pixels]:
    """Decode a picture upright, a GIF's first frame, and return the input pixels for each of `preprocesses`.

    `scaled` decodes a JPEG at a reduced size. Raises Problem 400 if the picture is broken, RequestOver once `over` is
    set: between two blocks of the file, and between two of `preprocesses`.
    """
    try:
        if scaled:
            draft(picture, preprocesses)
        turned = upright(picture)
        pixels = []
        for preprocess in preprocesses:
            if over:
                check_wanted(over)
            pixels.append(preprocess(turned))
        return pixels
    except RequestOver:
        raise
    except Exception as error:  # Pillow raises nearly anything on bytes made to break it
        raise broken(error) from error


def broken(error: Exception) -> Problem:
    """Convert an error of Pillow's into problem 400 `broken_image`."""
    return Problem(400, "broken_image", f"the image cannot be decoded: {error}")


def plain_jpeg(body: bytes, content_type: str, samplings: frozenset[Sampling], max_pixels: int) -> Jpeg | None:
    """Return a body's plain JPEG without metadata if its sampling is among `samplings`, else None."""
    try:
        image = image_of(body, content_type)
        if not image.startswith(b"\xff\xd8"):
            return None
        parts = essentials(image)
    except (Problem, ValueError):  # which the decoding by Pillow reports
        return None
    return Jpeg(parts.body) if sampling_of(parts, max_pixels) in samplings else None


class Decoders:
    """Pool of threads that decode images. The scheduler's admission bounds the number of waiting images."""

    def __init__(self, threads: int, max_pixels: int, clock: Callable[[], float] = monotonic) -> None:
        self.threads = threads
        self._max_pixels = max_pixels
        self._pool = ThreadPoolExecutor(threads, "decode")
        self.under_way = 0  # images that a thread decodes, or that wait for one
        self._clock = clock
        self._mean_s, self._observed_at = 0.0, clock()

    @property
    def mean_s(self) -> float:
        """Mean seconds of a decoding, as a moving average over all but small images."""
        return self._mean_s * exp2((self._observed_at - self._clock()) / HALF_LIFE_S)

    def wait_s(self, images: int = 1) -> float:
        """Return the expected seconds until a thread is free for the last of `images`, from the mean decoding time."""
        return self.mean_s * (self.under_way + images - 1) / self.threads if images else 0.0

    def forget(self) -> None:
        """Reduce the mean decoding time by a tenth.

        Without this, requests that are refused for the expected time would never lead to a new observation.
        """
        self._mean_s *= 1 - LEARNING

    async def __call__(
        self, body: bytes, content_type: str, preprocesses: Sequence[Preprocess], *, scaled: bool, alone: bool
    ) -> tuple[list[Pixels], float]:
        """Decode a body's image; return its pixels for each of `preprocesses`, and the milliseconds this took.

        A small picture, or a medium one if no other request is in progress (`alone`), is decoded on the event loop,
        since the way to a thread and back takes longer. Raises Problem as `image_of`, `opened` and `decode` do.
        """
        started = perf_counter()
        most_bytes, most_pixels = MEDIUM if alone else SMALL
        if len(body) <= most_bytes:
            picture = opened(image_of(body, content_type), self._max_pixels)
            if picture.width * picture.height <= most_pixels:
                decoded, seconds = decode(picture, preprocesses, scaled=scaled), perf_counter() - started
                if len(body) > SMALL[0]:
                    self.observe(seconds)
                return decoded, seconds * 1000
        loop = asyncio.get_running_loop()
        over = Event()
        job = self._pool.submit(self._decode, body, content_type, preprocesses, scaled, over)
        self.under_way += 1
        # A cancelled request stops its thread only at the next block, so the job itself reports its end.
        job.add_done_callback(lambda _: loop.call_soon_threadsafe(self._ended))
        try:
            pixels, seconds = await asyncio.wrap_future(job)
        finally:
            over.set()
        self.observe(seconds)
        return pixels, (perf_counter() - started) * 1000

    async def plain_jpeg(
        self, body: bytes, content_type: str, samplings: frozenset[Sampling]
    ) -> tuple[Jpeg | None, float]:
        """Return a body's JPEG, and the milliseconds this took; None if Pillow must decode the picture.

        A GPU decodes plain JPEGs of some samplings.
        """
        started = perf_counter()
        if len(body) <= INSPECTED and body.count(b"\xff") - body.count(b"\xff\x00") <= MARKERS:
            jpeg = plain_jpeg(body, content_type, samplings, self._max_pixels)
        else:
            job = self._pool.submit(plain_jpeg, body, content_type, samplings, self._max_pixels)
            jpeg = await asyncio.wrap_future(job)
        return jpeg, (perf_counter() - started) * 1000

    def observe(self, seconds: float) -> None:
        """Count the decoding of one image in the mean."""
        self._mean_s = self.mean_s + LEARNING * (seconds - self.mean_s)
        self._observed_at = self._clock()

    def _ended(self) -> None:
        self.under_way -= 1

    def _decode(
        self, body: bytes, content_type: str, preprocesses: Sequence[Preprocess], scaled: bool, over: Event
    ) -> tuple[list[Pixels], float]:
        started = perf_counter()
        picture = opened(image_of(body, content_type), self._max_pixels, over)
        pixels = decode(picture, preprocesses, scaled=scaled, over=over)
        return pixels, perf_counter() - started
