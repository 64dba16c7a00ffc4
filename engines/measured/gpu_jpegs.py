"""Fidelity of a GPU's JPEG decoder on this machine: its pixels beside Pillow's, and the record of the comparison."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.metadata import PackageNotFoundError
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import ValidationError

from engines.measured import records
from engines.measured.jpegs import LEAST
from engines.published import files
from engines.published.essentials import essentials
from engines.published.manifest import Record
from engines.published.picture import open_picture, upright
from engines.published.plain_jpeg import SAMPLINGS, Sampling, sampling_of
from engines.published.preprocess import Preprocess
from engines.runtimes import machine

LIBRARIES = "nvidia-nvimgcodec-cu13", "nvidia-nvjpeg", "pillow"
DRIVER = Path("/proc/driver/nvidia/version")
BATCH = 16  # JPEGs that are decoded at once
MAX_PIXELS = 50_000_000
REENCODED = 16  # JPEGs of a folder that are also compared as written anew, in each sampling
ROUNDING = 1  # levels by which a resized pixel may differ

# Function that returns the input pixels of JPEGs, and the indices of the JPEGs that it refuses.
Decode = Callable[[Sequence[bytes], Preprocess], tuple[NDArray[np.uint8], list[int]]]


class JpegFidelity(Record):
    """Comparison of JPEGs of one sampling with Pillow.

    `different` counts the JPEGs of which a pixel of the middle square is not Pillow's. `levels` is the largest
    difference after preprocessing. A refused JPEG is compared no further: Pillow decodes it instead.
    """

    jpegs: int = 0
    refused: int = 0
    different: int = 0
    levels: int = 0

    @property
    def faithful(self) -> bool:
        """True if enough JPEGs were decoded, all of them as Pillow does."""
        return self.verdict == "faithful"

    @property
    def verdict(self) -> str:
        """Outcome of the comparison, for people."""
        decoded = self.jpegs - self.refused
        if not decoded:
            return "none decoded"
        if self.different or self.levels > ROUNDING:
            return "not faithful"
        return "faithful" if decoded >= LEAST else f"too few, {LEAST} are needed"


class GpuJpegRecord(Record):
    """Record of a GPU's decoder, "hardware" or "CUDA", on a machine with these versions."""

    gpu: str
    driver: str
    versions: dict[str, str]
    decoder: str
    samplings: dict[Sampling, JpegFidelity]


class Key(NamedTuple):
    """Identity of a decoder: GPU, driver, and the versions of LIBRARIES."""

    gpu: str
    driver: str
    versions: tuple[str, ...]


def key() -> Key | None:
    """Return the identity of this machine's decoder, or None without a GPU or one of the libraries."""
    name = machine.accelerator()
    if name is None:
        return None
    try:
        versions = tuple(map(records.version_of, LIBRARIES))
    except PackageNotFoundError:
        return None
    return Key(name, machine.field(DRIVER, "NVRM version") or "unknown", versions)


def path_of(decoder: Key) -> Path:
    """Return the path of a decoder's record, which need not exist."""
    text = "\n".join([decoder.gpu, decoder.driver, *decoder.versions])
    return records.folder() / f"gpu-jpeg-{hashlib.sha256(text.encode()).hexdigest()[:12]}.json"


def faithful_jpegs() -> frozenset[Sampling]:
    """Return the samplings of plain JPEGs that this machine's GPU was found to decode as Pillow does; starts no CUDA.

    Empty without a GPU, without the libraries of [gpu-jpeg], or where `python -m engines verify --jpegs` has not run
    with these versions and this driver.
    """
    decoder = key()
    if decoder is None:
        return frozenset()
    try:
        record = GpuJpegRecord.model_validate_json(path_of(decoder).read_bytes())
    except FileNotFoundError:
        return frozenset()
    except (OSError, ValidationError) as error:
        records.log_unreadable(path_of(decoder), str(error).splitlines()[0])
        return frozenset()
    return frozenset(sampling for sampling, fidelity in record.samplings.items() if fidelity.faithful)


def keep(decoder: Key, kind: str, samplings: dict[Sampling, JpegFidelity]) -> None:
    """Write the record of a decoder."""
    record = GpuJpegRecord(
        gpu=decoder.gpu,
        driver=decoder.driver,
        versions=dict(zip(LIBRARIES, decoder.versions, strict=True)),
        decoder=kind,
        samplings=samplings,
    )
    files.write(path_of(decoder), record.model_dump_json(indent=1))


class PlainJpeg(NamedTuple):
    """Plain JPEG: its sampling, its bytes without metadata, and the picture that Pillow decodes."""

    sampling: Sampling
    body: bytes
    picture: Image.Image


def plain(bodies: Iterable[bytes]) -> Iterator[PlainJpeg]:
    """Yield the plain JPEGs among some files, and REENCODED of them in each sampling; skip broken ones."""
    written_anew = 0
    for body in bodies:
        if jpeg := plain_jpeg(body):
            yield jpeg
            if written_anew < REENCODED:
                yield from reencoded(jpeg.picture)
                written_anew += 1


def plain_jpeg(body: bytes) -> PlainJpeg | None:
    """Return a file's plain JPEG, or None for another picture or a broken one."""
    parts = essentials(body)
    sampling = sampling_of(parts, MAX_PIXELS)
    if sampling is None:
        return None
    try:
        return PlainJpeg(sampling, parts.body, upright(open_picture(parts)))
    except Exception:  # Pillow raises nearly anything
        return None


def reencoded(picture: Image.Image) -> Iterator[PlainJpeg]:
    """Yield a picture's middle, a square of an odd edge, written anew in each sampling and with restart markers."""
    edge = min(picture.size) - 1 | 1
    left, top = (picture.width - edge) // 2, (picture.height - edge) // 2
    square = picture.crop((left, top, left + edge, top + edge))
    ways: list[dict[str, Any]] = [{"subsampling": name} for name in SAMPLINGS if name != "grey"]
    for options in [*ways, {"restart_marker_blocks": 5}, {"restart_marker_rows": 1}, {}]:
        file = io.BytesIO()
        square.convert("RGB" if options else "L").save(file, "JPEG", quality=90, **options)
        if jpeg := plain_jpeg(file.getvalue()):
            yield jpeg


def compare(
    decode: Decode, bodies: Iterable[bytes], preprocesses: Sequence[Preprocess]
) -> dict[Sampling, JpegFidelity]:
    """Compare a decoder with Pillow on the plain JPEGs among some files, by sampling."""
    found: dict[Sampling, JpegFidelity] = {}
    jpegs = plain(bodies)
    while batch := list(islice(jpegs, BATCH)):
        for jpeg, levels in zip(batch, levels_of(decode, batch, preprocesses), strict=True):
            same = None if levels is None else middle_is_same(decode, jpeg)
            last = found.get(jpeg.sampling, JpegFidelity())
            found[jpeg.sampling] = JpegFidelity(
                jpegs=last.jpegs + 1,
                refused=last.refused + (same is None),
                different=last.different + (same is False),
                levels=max(last.levels, levels or 0),
            )
    return found


def levels_of(decode: Decode, batch: Sequence[PlainJpeg], preprocesses: Sequence[Preprocess]) -> list[int | None]:
    """Return each JPEG's largest difference from Pillow after preprocessing, or None for a refused one."""
    levels: list[int | None] = [0] * len(batch)
    for preprocess in preprocesses:
        pixels, refused = decode([jpeg.body for jpeg in batch], preprocess)
        for number, (found, jpeg) in enumerate(zip(pixels, batch, strict=True)):
            before = levels[number]
            if before is None or number in refused:
                levels[number] = None
            else:
                levels[number] = max(before, distance(found, preprocess(jpeg.picture)))
    return levels


def middle_is_same(decode: Decode, jpeg: PlainJpeg) -> bool | None:
    """Return True if the decoded pixels of the middle square are Pillow's, or None if the decoder refuses the JPEG."""
    edge = min(jpeg.picture.size)
    as_decoded = Preprocess(mode="RGB", resize_edge=edge, crop=edge)
    pixels, refused = decode([jpeg.body], as_decoded)
    return None if refused else np.array_equal(pixels[0], as_decoded(jpeg.picture))


def distance(pixels: NDArray[np.uint8], expected: NDArray[np.uint8]) -> int:
    """Return the largest difference between pixels, in levels."""
    return int(np.abs(pixels.astype(np.int16) - expected).max())


def gpu_decoder() -> tuple[Decode, str]:
    """Return the decoder of this machine's GPU and its kind. Raises EngineError if there is none."""
    from engines.runtimes.gpu_jpeg.jpegs import GpuJpegs
    from engines.runtimes.tensorrt import gpu

    device = gpu.device()
    kind = GpuJpegs(device, Preprocess(mode="RGB", resize_edge=1, crop=1)).decoder
    return lambda bodies, preprocess: GpuJpegs(device, preprocess).pixels(bodies), kind


def table(samplings: dict[Sampling, JpegFidelity]) -> str:
    """Return a comparison's lines, one a sampling."""
    lines = ["sampling  JPEGs  refused  different  levels"]
    for sampling in SAMPLINGS:
        found = samplings.get(sampling, JpegFidelity())
        figures = f"{found.jpegs:6} {found.refused:8} {found.different:10} {found.levels:7}"
        lines.append(f"{sampling:8} {figures}  {found.verdict}")
    return "\n".join(lines)
