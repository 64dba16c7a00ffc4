from __future__ import annotations

import ctypes
import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from engines.published.preprocess import Preprocess
from engines.runtimes.gpu_jpeg import kernel
from engines.runtimes.gpu_jpeg.decode import ALIGNMENT, ATTEMPTS, JpegLane
from engines.runtimes.gpu_jpeg.resample import resized
from tests.engines.host_canvas import CPU, HostCanvas, by_pillow, fill, jpeg, noise

SIZES = [(1, 1), (3, 500), (500, 3), (60, 90), (224, 224), (300, 500), (427, 640), (640, 427), (2000, 40)]
PHOTO = Preprocess(mode="RGB", resize_edge=64, crop=56)
PREPROCESSES = [
    PHOTO,
    Preprocess(mode="RGB", resize_edge=342, crop=299, interpolation="bicubic"),
    Preprocess(mode="L", resize_edge=28, crop=28, pad=2, fill=7),
    Preprocess(mode="L", resize_edge=224, crop=224, interpolation="bicubic"),
]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("preprocess", PREPROCESSES)
def test_sums_by_tables_are_pillows_pixels(preprocess: Preprocess, size: tuple[int, int]) -> None:
    pixels = noise(*size)
    assert np.array_equal(resized(preprocess, pixels), preprocess(Image.fromarray(pixels)))


@pytest.mark.parametrize("preprocess", PREPROCESSES)
def test_the_kernel_computes_the_same_sums(kernel_library: ctypes.CDLL, preprocess: Preprocess) -> None:
    pictures = [noise(*size) for size in SIZES]
    output = np.zeros((len(pictures), *preprocess.shape), np.uint8)
    places = [
        kernel.Decoded(pixels.ctypes.data, pixels.shape[1], pixels.shape[0], place)
        for place, pixels in enumerate(pictures)
    ]
    HostCanvas(kernel_library).resize(preprocess, places[::-1], output.ctypes.data, 0)
    for pixels, found in zip(pictures, output, strict=True):
        assert np.array_equal(found, preprocess(Image.fromarray(pixels)))


def test_the_kernel_compiles_for_a_gpu() -> None:
    core = pytest.importorskip("cuda.core")
    options = core.ProgramOptions(arch="sm_90")
    assert core.Program(kernel.SOURCE, "c++", options).compile("cubin").code


@pytest.mark.parametrize("preprocess", PREPROCESSES)
def test_jpegs_become_pillows_pixels(lane: JpegLane, preprocess: Preprocess) -> None:
    bodies = [
        jpeg(*size, quality=quality, subsampling=subsampling)
        for size in SIZES
        for quality, subsampling in ((95, 0), (75, 1), (30, 2))
    ]
    grey = io.BytesIO()
    Image.fromarray(noise(90, 60)[:, :, 0]).save(grey, "JPEG")
    bodies.append(grey.getvalue())
    pixels, refused = fill(lane, preprocess, [*bodies[:-1], memoryview(bytearray(bodies[-1]))])
    assert not refused
    for body, found in zip(bodies, pixels, strict=True):
        assert np.array_equal(found, by_pillow(preprocess, body))


def test_only_a_broken_jpeg_is_refused(lane: JpegLane) -> None:
    bodies = [jpeg(), jpeg()[:1000], b"no picture", jpeg(200, 50), b"", jpeg(50, 200)]
    pixels, refused = fill(lane, PHOTO, bodies)
    assert refused == [1, 2, 4]
    for place in (0, 3, 5):
        assert np.array_equal(pixels[place], by_pillow(PHOTO, bodies[place]))


def test_a_batch_that_fails_as_a_whole_is_tried_in_parts(lane: JpegLane, monkeypatch: pytest.MonkeyPatch) -> None:
    bodies = [jpeg(), jpeg(200, 50), jpeg()[:1000], jpeg(50, 200), jpeg()]
    decoder = lane._decoder

    class OfHardware:
        """Decoder whose batch fails if one of it is broken, as nvJPEG's hardware decoder."""

        def decode(self, codes: Any, **options: Any) -> list[Any]:
            results: list[Any] = decoder.decode(codes, **options)
            return results if all(results) else [None] * len(results)

    monkeypatch.setattr(lane, "_decoder", OfHardware())
    pixels, refused = fill(lane, PHOTO, bodies)
    assert refused == [2]
    for place in (0, 1, 3, 4):
        assert np.array_equal(pixels[place], by_pillow(PHOTO, bodies[place]))


def test_attempts_are_bounded(lane: JpegLane, monkeypatch: pytest.MonkeyPatch) -> None:
    attempts = []

    class Refusing:
        """Decoder that refuses all, as of a size that hardware does not decode."""

        def decode(self, codes: Any, **options: Any) -> list[Any]:
            attempts.append(len(codes))
            return [None] * len(codes)

    monkeypatch.setattr(lane, "_decoder", Refusing())
    assert fill(lane, PHOTO, [jpeg()] * 128)[1] == list(range(128))
    assert len(attempts) == ATTEMPTS


def test_memory_is_bounded(kernel_library: ctypes.CDLL, lane: JpegLane) -> None:
    canvas = HostCanvas(kernel_library, capacity=3 * 100 * 100 + ALIGNMENT)
    bounded = JpegLane(canvas, "CPU_ONLY", CPU, 1)
    bodies = [jpeg(100, 100), jpeg(90, 20), jpeg(90, 30), jpeg(200, 200), jpeg(100, 90)]
    pixels, refused = fill(bounded, PHOTO, bodies)
    assert refused == [3]
    assert len(canvas.begun) == 3
    assert max(canvas.begun) <= canvas.capacity
    for place in (0, 1, 2, 4):
        assert np.array_equal(pixels[place], by_pillow(PHOTO, bodies[place]))


def test_one_refused_jpeg_is_settled_too(lane: JpegLane, monkeypatch: pytest.MonkeyPatch) -> None:
    settled: list[int] = []
    monkeypatch.setattr(lane._canvas, "settle", settled.append)
    assert fill(lane, PHOTO, [jpeg()])[1] == []
    assert not settled
    assert fill(lane, PHOTO, [jpeg()[:1000]])[1] == [0]
    assert settled == [0]


def test_without_gpu_memory_pillow_decodes(
    lane: JpegLane, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def failing(error: Exception) -> None:
        def begin(size: int) -> int:
            raise error

        monkeypatch.setattr(lane._canvas, "begin", begin)

    failing(MemoryError("CUDA_ERROR_OUT_OF_MEMORY"))
    for _ in range(3):
        assert fill(lane, PHOTO, [jpeg(), jpeg()])[1] == [0, 1]
    assert caplog.text.count("no GPU memory to decode JPEGs, which Pillow decodes instead: CUDA_ERROR_OUT_OF") == 1
    failing(RuntimeError("CUDA_ERROR_ILLEGAL_ADDRESS"))
    with pytest.raises(RuntimeError, match="ILLEGAL_ADDRESS"):
        fill(lane, PHOTO, [jpeg()])
