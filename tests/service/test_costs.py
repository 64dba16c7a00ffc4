"""Tests of what decoding may cost: bounded before it starts, and ended soon after its request."""

from __future__ import annotations

import asyncio
import threading
import time

import numpy as np
import pytest
from PIL import Image

from engines.published.preprocess import Preprocess
from service.errors import Problem
from service.images import HALF_LIFE_S, MAX_SCANS, Decoders, ImageBytes, RequestOver, decode, opened
from tests.service.bombs import HARMLESS, jpeg_of_scans, large_png
from tests.service.test_images import LIMIT, SMALL, encoded, to_pixels

MEGAPIXELS_50 = 50_000_000


@pytest.mark.parametrize("mpo", [False, True])
@pytest.mark.parametrize(("edge", "scans"), [(64, MAX_SCANS), (7000, 21), (2300, 190)])
def test_a_jpegs_scans_are_bounded_by_their_number_and_their_pixels(edge: int, scans: int, mpo: bool) -> None:
    with pytest.raises(Problem, match="scans are too many for its size") as raised:
        opened(jpeg_of_scans(edge, scans, mpo=mpo), MEGAPIXELS_50)
    assert (raised.value.status, raised.value.code) == (400, "broken_image")


@pytest.mark.parametrize(("edge", "scans"), [(64, MAX_SCANS - 1), (7000, 18), (2000, 190)])
def test_as_many_scans_as_encoders_write_are_decoded(edge: int, scans: int) -> None:
    body = jpeg_of_scans(edge, scans, mpo=True)
    started = time.process_time()
    decode(opened(body, MEGAPIXELS_50), [SMALL], scaled=False)
    assert time.process_time() - started < 5  # 0.7 s


def test_arithmetic_coding_counts_for_what_it_costs() -> None:
    decode(opened(jpeg_of_scans(2000, 9, arithmetic=True), MEGAPIXELS_50), [SMALL], scaled=False)
    with pytest.raises(Problem, match="too many for its size"):
        opened(jpeg_of_scans(3000, 9, arithmetic=True), MEGAPIXELS_50)


def test_scans_in_a_preview_or_after_the_end_do_not_count() -> None:
    body, scan = encoded(Image.new("L", (20, 20), 99), "JPEG"), b"\xff\xda\0\2"
    preview = b"\xff\xe2" + (2 + 4 * 16_000).to_bytes(2) + scan * 16_000
    assert (to_pixels(body[:2] + preview + body[2:] + scan * 1000, SMALL, LIMIT) == 99).all()


@pytest.mark.parametrize("name", HARMLESS)
def test_text_that_would_unpack_to_much_is_left_packed(name: str) -> None:
    assert (to_pixels(HARMLESS[name](), SMALL, LIMIT) == 0).all()


def test_scans_that_hide_behind_an_unknown_marker_are_counted() -> None:
    """libjpeg passes over the marker alone where a picture restarts, and decodes what seems to be its contents."""
    body, scan = jpeg_of_scans(64, 1), b"\xff\xda\0\x08\1\1\0\1\x3f\0"
    hidden = scan * (MAX_SCANS + 1)
    with pytest.raises(Problem, match="scans are too many for its size"):
        opened(body[:-2] + b"\xff\x02" + (2 + len(hidden)).to_bytes(2) + hidden + body[-2:], MEGAPIXELS_50)


@pytest.mark.parametrize(("width", "height"), [(1, 65_536), (65_536, 1)])
def test_an_edge_is_bounded(width: int, height: int) -> None:
    with pytest.raises(Problem, match="an edge of the image has more than 65,535 pixels") as raised:
        opened(large_png(width, height), MEGAPIXELS_50)
    assert (raised.value.status, raised.value.code) == (413, "too_many_pixels")
    decode(opened(large_png(width // 65_536 or 1, 65_535), MEGAPIXELS_50), [SMALL], scaled=False)


def noise(edge: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (edge, edge, 3), dtype=np.uint8))


@pytest.mark.parametrize(
    ("image_format", "options"),
    [("PNG", {}), ("JPEG", {}), ("JPEG", {"progressive": True}), ("BMP", {}), ("GIF", {})],
)
def test_decoding_ends_with_its_request(image_format: str, options: dict[str, bool]) -> None:
    over = threading.Event()
    picture = opened(encoded(noise(600), image_format, **options), LIMIT, over)
    over.set()
    with pytest.raises(RequestOver):
        decode(picture, [SMALL], scaled=False, over=over)


def test_no_model_is_prepared_for_after_the_request() -> None:
    over, prepared = threading.Event(), []

    class Preparing(Preprocess):
        """Preprocessing that ends the request."""

        def __call__(self, picture: Image.Image) -> np.ndarray:
            prepared.append(picture)
            over.set()
            return np.zeros((1, 1, 1), np.uint8)

    preprocess = Preparing(mode="L", resize_edge=1, crop=1)
    with pytest.raises(RequestOver):
        decode(opened(encoded(noise(20), "WEBP"), LIMIT, over), [preprocess] * 20, scaled=False, over=over)
    assert len(prepared) == 1


def test_a_cancelled_request_frees_its_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Decode through a file that is read slowly, as if each block took a tenth of a second."""
    read = ImageBytes.read

    def slowly(self: ImageBytes, size: int | None = -1) -> bytes:
        time.sleep(0.1)
        return read(self, size)

    monkeypatch.setattr(ImageBytes, "read", slowly)
    body = encoded(noise(1000), "BMP")  # 46 blocks

    async def scenario() -> float:
        decoders = Decoders(1, LIMIT)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(decoders(body, "image/bmp", [SMALL], scaled=False, alone=False), 0.5)
        started = time.monotonic()
        while decoders.under_way:
            await asyncio.sleep(0.01)
        return time.monotonic() - started

    assert asyncio.run(scenario()) < 1


def test_photos_decoded_on_the_event_loop_count_in_the_expected_time_and_small_pictures_do_not() -> None:
    async def scenario() -> None:
        decoders = Decoders(1, LIMIT)
        await decoders(encoded(noise(40), "JPEG"), "image/jpeg", [SMALL], scaled=False, alone=True)
        assert decoders.mean_s == 0
        await decoders(encoded(noise(300), "JPEG"), "image/jpeg", [SMALL], scaled=False, alone=True)
        assert decoders.mean_s > 0

    asyncio.run(scenario())


def test_slow_decodings_of_a_busy_past_are_forgotten_without_a_request() -> None:
    now = [0.0]
    decoders = Decoders(1, LIMIT, clock=lambda: now[0])
    decoders.observe(1)
    assert decoders.mean_s == pytest.approx(0.1)
    now[0] += 2 * HALF_LIFE_S
    assert decoders.mean_s == pytest.approx(0.025)
    decoders.observe(0.005)
    assert decoders.mean_s == pytest.approx(0.023)
