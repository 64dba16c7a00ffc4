"""Tests on an NVIDIA GPU: its JPEG decoder and the resizing kernel beside Pillow."""

from __future__ import annotations

import io
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from engines.measured.gpu_jpegs import compare, distance, gpu_decoder
from engines.published.plain_jpeg import SAMPLINGS
from engines.published.preprocess import Preprocess
from engines.runtimes.engine import EngineError
from engines.runtimes.gpu_jpeg import jpegs
from engines.runtimes.gpu_jpeg.jpegs import GpuCanvas, GpuJpegs
from engines.runtimes.gpu_jpeg.kernel import Decoded
from engines.runtimes.lanes import LANES
from engines.runtimes.tensorrt import gpu
from tests.engines.host_canvas import by_pillow, jpeg, noise

pytestmark = pytest.mark.gpu
PREPROCESSES = [
    Preprocess(mode="RGB", resize_edge=256, crop=224),
    Preprocess(mode="RGB", resize_edge=342, crop=299, interpolation="bicubic"),
    Preprocess(mode="L", resize_edge=28, crop=28, pad=2, fill=7),
]
SIZES = [(1, 1), (3, 500), (500, 3), (60, 90), (224, 224), (300, 500), (427, 640), (640, 427), (4000, 3000)]
LARGE = [(64, 64), (100, 90), (427, 640), (640, 427), (1281, 855), (4000, 3000)]


@pytest.fixture(scope="module", autouse=True)
def decoder() -> str:
    """Kind of the GPU's decoder."""
    try:
        return gpu_decoder()[1]
    except EngineError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("preprocess", PREPROCESSES)
def test_the_kernel_resizes_as_pillow(preprocess: Preprocess) -> None:
    device = gpu.device()
    device.set_current()
    stream, canvas = device.create_stream(), GpuCanvas(device)
    output = device.allocate(int(np.prod(preprocess.shape)), stream=stream)
    handle = int(stream.handle)
    for size in SIZES:
        pixels = noise(*size)
        address = canvas.begin(pixels.nbytes)
        gpu.copy(address, pixels.ctypes.data, pixels.nbytes, handle)
        canvas.resize(preprocess, [Decoded(address, *size, 0)], int(output.handle), handle)
        canvas.end(handle)
        found = np.empty(preprocess.shape, np.uint8)
        gpu.copy(found.ctypes.data, int(output.handle), found.nbytes, handle)
        stream.sync()
        assert np.array_equal(found, preprocess(Image.fromarray(pixels))), size


def test_jpegs_of_every_sampling_are_pillows() -> None:
    decode, _ = gpu_decoder()
    found = compare(decode, [jpeg(*size, quality=quality) for size in LARGE for quality in (40, 90)], PREPROCESSES)
    assert all(found[sampling].faithful for sampling in SAMPLINGS), found


def test_a_broken_jpeg_harms_no_other() -> None:
    bodies = [jpeg(400 + number, 300) for number in range(12)]
    broken = {3: b"", 5: bodies[5][:300], 8: b"no JPEG"}
    mixed = [broken.get(number, body) for number, body in enumerate(bodies)]
    pixels, refused = GpuJpegs(gpu.device(), PREPROCESSES[0]).pixels(mixed)
    assert broken.keys() <= set(refused)
    for number in set(range(12)) - broken.keys():
        assert number not in refused
        assert distance(pixels[number], by_pillow(PREPROCESSES[0], bodies[number])) <= 1


@pytest.mark.parametrize("share", [0, 0.5])
def test_a_jpeg_that_ends_early_shows_no_earlier_picture(share: float) -> None:
    white, black, grey = (written(Image.new("RGB", (427, 640), colour)) for colour in ("white", "black", "#404040"))
    scan = grey.index(b"\xff\xda") + 14  # after its header of three components
    ends_early = grey[: scan + int(share * (len(grey) - scan))] + b"\xff\xd9"
    found = GpuJpegs(gpu.device(), PREPROCESSES[0])
    answers = []
    for earlier, level in ((white, 255), (black, 0)) * 3:
        for _ in range(LANES):  # which take turns
            pixels, refused = found.pixels([earlier] * 8)
            assert not refused
            assert (pixels == level).all()
        for _ in range(LANES):
            pixels, refused = found.pixels([ends_early] * 8)
            pixels[refused] = 0
            answers.append((refused, pixels))
    for refused, pixels in answers:
        assert refused == answers[0][0]
        assert np.array_equal(pixels, answers[0][1])


def written(picture: Image.Image) -> bytes:
    """Return a picture as a JPEG."""
    file = io.BytesIO()
    picture.save(file, "JPEG")
    return file.getvalue()


def test_copied_pixels_are_in_place() -> None:
    device = gpu.device()
    device.set_current()
    pixels = np.stack([noise(64, 48), noise(64, 48)[::-1]])
    stream, found = device.create_stream(), np.empty_like(pixels)
    output = device.allocate(pixels.nbytes, stream=stream)
    handle = int(stream.handle)
    GpuJpegs(device, PREPROCESSES[0]).copy(pixels, int(output.handle), handle)
    gpu.copy(found.ctypes.data, int(output.handle), found.nbytes, handle)
    stream.sync()
    assert np.array_equal(found, pixels)
    assert not gpu.context_lost()


def test_threads_decode_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GpuCanvas, "capacity", 4 << 20)  # some pictures at a time
    batches = [[jpeg(300 + 50 * number, 400 + 31 * place) for place in range(16)] for number in range(4)]
    preprocess = PREPROCESSES[0]
    expected = [[by_pillow(preprocess, body) for body in batch] for batch in batches]
    barrier = threading.Barrier(len(batches))
    found = GpuJpegs(gpu.device(), preprocess)

    def work(number: int) -> int:
        barrier.wait()
        worst = 0
        for _ in range(50):
            pixels, refused = found.pixels(batches[number])
            assert not refused
            worst = max(worst, *(distance(one, other) for one, other in zip(pixels, expected[number], strict=True)))
        return worst

    with ThreadPoolExecutor(len(batches)) as pool:
        assert max(pool.map(work, range(len(batches)))) <= 1


def test_memory_is_bounded() -> None:
    bodies = [jpeg(2000, 1500) for _ in range(40)]  # 9 MB each
    found, refused = GpuJpegs(gpu.device(), PREPROCESSES[0]).pixels(bodies)
    assert not refused
    assert (found == found[0]).all()
    assert jpegs.grown(jpegs.CAPACITY) == jpegs.CAPACITY
