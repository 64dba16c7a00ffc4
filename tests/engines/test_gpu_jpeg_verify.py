from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from engines.measured import commands, gpu_jpegs, jpegs, records
from engines.measured.gpu_jpegs import Decode, JpegFidelity, compare, faithful_jpegs
from engines.published.plain_jpeg import SAMPLINGS
from engines.published.preprocess import Preprocess
from engines.runtimes import machine
from engines.runtimes.engine import EngineError
from engines.runtimes.gpu_jpeg.decode import JpegLane
from tests.engines.host_canvas import fill, jpeg

SMALL = Preprocess(mode="RGB", resize_edge=32, crop=28)


@pytest.fixture
def decode(lane: JpegLane) -> Decode:
    return lambda bodies, preprocess: fill(lane, preprocess, bodies)


@pytest.fixture
def gpu_machine(decode: Decode, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Folder of records of a machine with a GPU, whose decoder is nvImageCodec's for the processor."""
    monkeypatch.setattr(records, "folder", lambda: tmp_path / "records")
    monkeypatch.setattr(machine, "accelerator", lambda: "NVIDIA Imaginary")
    monkeypatch.setattr(commands, "accelerator", lambda: "NVIDIA Imaginary")
    monkeypatch.setattr(gpu_jpegs, "gpu_decoder", lambda: (decode, "hardware"))
    return tmp_path / "records"


def test_each_sampling_is_compared(decode: Decode) -> None:
    found = compare(decode, [jpeg(60, 80), jpeg(80, 60, subsampling=0), jpeg(progressive=True), b"no JPEG"], [SMALL])
    assert found.keys() == set(SAMPLINGS)
    assert {fidelity.verdict for fidelity in found.values()} == {"too few, 8 are needed"}
    assert not any(fidelity.different or fidelity.levels for fidelity in found.values())
    assert {sampling: fidelity.jpegs for sampling, fidelity in found.items()} == {
        "4:2:0": 2 * 3 + 1,  # written anew without restart markers, with some within rows, and with one a row
        "4:4:4": 2 + 1,
        "4:2:2": 2,
        "grey": 2,
    }


def test_other_pixels_are_not_faithful(decode: Decode) -> None:
    def brighter(bodies: Sequence[bytes], preprocess: Preprocess) -> tuple[NDArray[np.uint8], list[int]]:
        pixels, refused = decode(bodies, preprocess)
        return pixels // 2 + 3, refused

    def one_off(bodies: Sequence[bytes], preprocess: Preprocess) -> tuple[NDArray[np.uint8], list[int]]:
        pixels, refused = decode(bodies, preprocess)
        return (pixels if preprocess != SMALL else pixels - (pixels > 0)), refused

    different = compare(brighter, [jpeg()], [SMALL])["4:2:0"]
    assert (different.different, different.faithful) == (different.jpegs, False)
    assert different.levels > 1
    assert compare(one_off, [jpeg()], [SMALL])["4:2:0"] == JpegFidelity(jpegs=4, levels=1)


def test_what_is_refused_shows_nothing(decode: Decode) -> None:
    def refusing(bodies: Sequence[bytes], preprocess: Preprocess) -> tuple[NDArray[np.uint8], list[int]]:
        return decode(bodies, preprocess)[0], list(range(len(bodies)))

    found = compare(refusing, [jpeg()], [SMALL])["4:2:0"]
    assert (found.refused, found.faithful) == (found.jpegs, False)


def test_the_command_records_what_the_service_reads(
    gpu_machine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "photo.jpg").write_bytes(jpeg())
    commands.verify_gpu_jpegs([], [tmp_path / "photo.jpg"] * (jpegs.LEAST - 1))
    assert faithful_jpegs() == {"4:2:0"}  # those written anew, in three ways, beside the photos; of others too few
    assert capsys.readouterr().out.count("  too few, 8 are needed\n") == len(SAMPLINGS) - 1
    commands.verify_gpu_jpegs([], [tmp_path / "photo.jpg"] * jpegs.LEAST)
    assert faithful_jpegs() == frozenset(SAMPLINGS)
    printed = capsys.readouterr().out
    assert printed.startswith("JPEGs on NVIDIA Imaginary by its hardware decoder, beside Pillow\n")
    assert printed.count("  faithful\n") == len(SAMPLINGS)
    (record,) = gpu_machine.glob("gpu-jpeg-*.json")
    record.write_text("{}")
    assert faithful_jpegs() == frozenset()


def test_a_record_is_of_one_gpu_driver_and_version(gpu_machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = gpu_jpegs.key()
    assert decoder
    faithful = JpegFidelity(jpegs=8)
    gpu_jpegs.keep(decoder, "CUDA", {"4:2:0": faithful, "grey": JpegFidelity(jpegs=8, different=1)})
    assert faithful_jpegs() == {"4:2:0"}
    monkeypatch.setattr(machine, "field", lambda path, name: "another driver")
    assert faithful_jpegs() == frozenset()
    monkeypatch.setattr(machine, "accelerator", lambda: None)
    assert gpu_jpegs.key() is None
    assert faithful_jpegs() == frozenset()


def test_the_command_says_what_is_missing(
    gpu_machine: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing() -> tuple[Decode, str]:
        raise EngineError("nvImageCodec is not installed: pip install '.[gpu-jpeg]'")

    monkeypatch.setattr(gpu_jpegs, "gpu_decoder", missing)
    commands.verify_gpu_jpegs([], [])
    assert capsys.readouterr().out == (
        "JPEGs on the GPU  cannot run: nvImageCodec is not installed: pip install '.[gpu-jpeg]'\n"
    )
    monkeypatch.setattr(commands, "accelerator", lambda: None)
    commands.verify_gpu_jpegs([], [])
    assert capsys.readouterr().out == "GPU decoding: not compared, there is no NVIDIA GPU\n"
