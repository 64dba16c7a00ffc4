"""Tests of JPEGs that a device decodes, from the request to the engine: nvImageCodec's decoder for the processor."""

from __future__ import annotations

import asyncio
import ctypes
import functools
import io
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from threading import Lock
from typing import cast

import numpy as np
import pytest
import skimage
from numpy.typing import NDArray
from PIL import Image

from engines.published.essentials import essentials
from engines.published.plain_jpeg import SAMPLINGS, Sampling
from engines.published.preprocess import Preprocess
from engines.runtimes.engine import Fill
from engines.runtimes.gpu_jpeg.decode import JpegLane
from engines.runtimes.tensorrt import gpu
from service.batches import Inputs, Jpeg, Picture, Pixels, RefusedJpeg, in_threads, run
from service.context import ServerContext, make_context, make_front
from service.device import LocalDevice
from service.device_process import DeviceProcess
from service.settings import Settings
from tests.engines.conftest import kernel_library, lane  # noqa: F401
from tests.service.stubs import StubEngine, client_of, put

pytestmark = pytest.mark.anyio
PHOTO = (Path(skimage.__file__).parent / "data" / "rocket.jpg").read_bytes()
BROKEN = PHOTO[: len(PHOTO) // 2] + PHOTO[-2:]  # which Pillow reads as far as it goes
PREPROCESS = Preprocess(mode="RGB", resize_edge=40, crop=32)


class PixelEngine(StubEngine):
    """Engine on a "GPU" in host memory, whose logits are pixels."""

    lanes = 2

    def infer(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        return pixels.reshape(len(pixels), -1)[:, 7::311].astype(np.float32)[:, :10] / np.float32(32)

    def infer_filled(self, count: int, fill: Fill) -> NDArray[np.float32]:
        pixels = np.zeros((count, *PREPROCESS.shape), np.uint8)
        fill(pixels.ctypes.data, 0)
        return self.infer(pixels)

    def prepare(self, shape: tuple[int, ...]) -> None:
        pass


class HostDecoder:
    """Decoder of nvImageCodec for the processor that refuses BROKEN, as a GPU's may; `decoded` counts JPEGs."""

    samplings: frozenset[Sampling] = frozenset(SAMPLINGS)

    def __init__(self, of_library: JpegLane) -> None:
        self._lane, self._lock = of_library, Lock()
        self.decoded = self.refused = 0

    def fill(self, bodies: Sequence[bytes | memoryview], pixels: Pixels | None, pointer: int, stream: int) -> list[int]:
        with self._lock:
            refused = self._lane.fill(PREPROCESS, bodies, pointer, stream)
            refused += [place for place, body in enumerate(bodies) if bytes(body) == essentials(BROKEN).body]
            if pixels is not None:
                ctypes.memmove(pointer + len(bodies) * pixels[0].nbytes, pixels.ctypes.data, pixels.nbytes)
            self.refused += len(refused)
            self.decoded += len(bodies) - len(refused)
        return refused


@pytest.fixture
def decoder(lane: JpegLane) -> HostDecoder:  # noqa: F811
    return HostDecoder(lane)


def written(photo: bytes, form: str, **options: object) -> bytes:
    """Return a photo's pixels, written in another form."""
    file = io.BytesIO()
    Image.open(io.BytesIO(photo)).save(file, form, **options)
    return file.getvalue()


def pixels_of(body: bytes) -> Pixels:
    return PREPROCESS(Image.open(io.BytesIO(body)))


def serve(server: ServerContext, tag: str, decoder: HostDecoder) -> None:
    """Serve a model of photos by the engine and the decoder."""
    model = server.catalog.models[tag]
    changed = model.manifest.model_copy(update={"preprocess": PREPROCESS})
    model.published = replace(model.published, manifest=changed)
    put(server, tag, PixelEngine()).decoder = decoder


async def answers_of(server: ServerContext, tag: str, decoder: HostDecoder) -> None:
    """Ask for pictures of all kinds, and check who has decoded each."""
    png = written(PHOTO, "PNG")
    async with client_of(server) as client:

        async def ask(body: bytes) -> tuple[object, int]:
            """Return the predictions, and the number of JPEGs that the device decoded for the request."""
            before = decoder.decoded
            response = await client.post(f"/classify?model={tag}", content=body)
            assert response.status_code == 200, response.text
            return response.json()["predictions"], decoder.decoded - before

        of_png, decoded = await ask(png)
        assert decoded == 0
        assert await ask(PHOTO) == (of_png, 1)
        form = {"image": ("photo.jpg", PHOTO)}
        response = await client.post(f"/classify?model={tag}", files=form)
        assert response.json()["predictions"] == of_png
        for by_pillow in (written(PHOTO, "JPEG", progressive=True), png, BROKEN):
            assert (await ask(by_pillow))[1] == 0
        assert (await client.post(f"/classify?model={tag}", content=PHOTO[:3000])).json()["code"] == "broken_image"
        many = await asyncio.gather(*(ask(body) for body in [PHOTO, png, PHOTO, BROKEN] * 8))
        assert [predictions for predictions, _ in many[::4]] == [of_png] * 8
        assert [predictions for predictions, _ in many[1::4]] == [of_png] * 8
        compared = await client.post(f"/compare?models={tag}", content=PHOTO)
        assert compared.json()["models"][0]["answer"]["predictions"] == of_png
    assert decoder.refused == 9


async def test_one_process_passes_plain_jpegs_to_the_device(three: list[str], decoder: HostDecoder) -> None:
    server = make_context(Settings(load="first_use", tune="off"))
    serve(server, three[0], decoder)
    await answers_of(server, three[0], decoder)


async def test_fronts_pass_plain_jpegs_to_the_device(three: list[str], decoder: HostDecoder, tmp_path: Path) -> None:
    settings = Settings(load="first_use", tune="off")
    device = make_context(settings)
    serve(device, three[0], decoder)
    process = DeviceProcess(cast(LocalDevice, device.device), device.catalog, tmp_path / "d.sock")
    front = make_front(settings, [process.path], tmp_path)
    model = front.catalog.models[three[0]]
    model.published = device.catalog.models[three[0]].published
    tasks = [asyncio.create_task(each) for each in (process.serve(), device.device.run(), front.device.run())]
    async with asyncio.timeout(5):
        while front.device.problem:
            await asyncio.sleep(0.01)
    await answers_of(front, three[0], decoder)
    for task in tasks:
        task.cancel()


def test_pixels_and_jpegs_of_a_batch_keep_their_places(decoder: HostDecoder) -> None:
    smooth = Image.linear_gradient("L").convert("RGB")
    file = io.BytesIO()
    smooth.save(file, "JPEG")
    gradient = file.getvalue()
    pictures: list[Picture] = [
        pixels_of(PHOTO),
        Jpeg(gradient),
        Jpeg(essentials(BROKEN).body),
        pixels_of(gradient),
        Jpeg(memoryview(PHOTO)),
    ]
    outcomes = list(run(Inputs(PixelEngine(), pictures, decoder)))
    photo, other = PixelEngine().infer(np.stack([pixels_of(PHOTO), pixels_of(gradient)]))
    for place, expected in enumerate([photo, other, None, other, photo]):
        if expected is None:
            assert isinstance(outcomes[place], RefusedJpeg)
        else:
            np.testing.assert_array_equal(outcomes[place], expected)


async def test_a_jpeg_for_an_engine_without_a_decoder_is_refused_alone() -> None:
    pixels = pixels_of(PHOTO)
    jpeg, other = list(run(Inputs(PixelEngine(), [Jpeg(PHOTO), pixels])))
    assert isinstance(jpeg, RefusedJpeg)
    np.testing.assert_array_equal(other, PixelEngine().infer(pixels[None])[0])
    (alone,) = list(run(Inputs(PixelEngine(), [Jpeg(PHOTO)])))
    assert isinstance(alone, RefusedJpeg)


@pytest.mark.parametrize("lost", [True, False])
async def test_a_process_whose_cuda_is_lost_ends(lost: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    killed: list[int] = []
    monkeypatch.setattr(gpu, "context_lost", lambda: lost)
    monkeypatch.setattr(os, "kill", lambda process, _: killed.append(process))
    broken = PixelEngine(error=RuntimeError("an illegal memory access was encountered"))
    monkeypatch.setattr(broken, "infer", functools.partial(StubEngine.infer, broken))
    with pytest.raises(RuntimeError, match="illegal"):
        await in_threads()(Inputs(broken, [pixels_of(PHOTO)]))
    assert killed == [os.getpid()] * lost
