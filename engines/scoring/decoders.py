"""Decoding of many pictures in processes of their own, into memory that they share with the process of the device."""

from __future__ import annotations

import os
import signal
import warnings
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context, parent_process
from threading import Lock, Thread
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from engines.published.essentials import essentials
from engines.published.picture import keep_freed_memory, open_picture, upright
from engines.published.preprocess import Preprocess
from engines.scoring import pictures

NICE = 10  # decoders leave the processor to an engine that runs on it, and never let it wait for a picture
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")  # for others Pillow would start programs, such as Ghostscript
READ = 32  # pictures whose bytes a process holds at once
PILLOW_BLOCKS = 4  # of up to 16 MiB, as the server keeps
KILLED = "its decoder was killed, perhaps for want of memory"
Errors = list[str | None]  # by picture; None for a picture that was decoded


class DecodingProcess:
    """State of a decoding process: preprocessing, and the shared memory, (slots, batch, height, width, channels)."""

    memory: ClassVar[NDArray[np.uint8]]
    preprocess: ClassVar[Preprocess]


def begin(memory: Any, shape: tuple[int, ...], preprocess: Preprocess) -> None:
    """Prepare a process to decode into `memory`."""
    Thread(target=end_with_parent, daemon=True).start()
    os.nice(NICE)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the command, which ends its processes
    warnings.filterwarnings("ignore", module="PIL")
    if "PILLOW_BLOCKS_MAX" not in os.environ:  # large photos decode 1.5 times as fast with memory that is kept
        Image.core.set_blocks_max(PILLOW_BLOCKS)  # type: ignore[attr-defined]
    keep_freed_memory()
    DecodingProcess.memory = np.frombuffer(memory, np.uint8).reshape(shape)
    DecodingProcess.preprocess = preprocess


def end_with_parent() -> None:
    """End this process when its parent has ended, which a kill keeps from ending its processes."""
    if parent := parent_process():
        parent.join()
        os._exit(1)


def decode(slot: int, first: int, paths: Sequence[str]) -> Errors:
    """Read and decode pictures into the rows of a slot from `first` on, and return an error for each that is broken."""
    rows = DecodingProcess.memory[slot, first:]
    errors: Errors = []
    for start in range(0, len(paths), READ):
        bodies = pictures.read(paths[start : start + READ])
        errors += [decode_one(body, row) for body, row in zip(bodies, rows[start:], strict=False)]
    return errors


def decode_one(body: bytes | Exception, row: NDArray[np.uint8]) -> str | None:
    """Decode one picture as the server does, upright and preprocessed, into `row`; return its error, or None.

    TIFF, which the server refuses, is decoded too.
    """
    if isinstance(body, Exception):
        return f"it cannot be read: {described(body)}"
    try:
        row[:] = DecodingProcess.preprocess(upright(open_picture(essentials(body), FORMATS)))
    except Exception as error:  # Pillow raises nearly anything on broken pictures
        return f"it cannot be decoded: {described(error)}"
    return None


def described(error: Exception) -> str:
    """Return an error as one line: its text, or its class if there is none."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split()) or type(error).__name__


class DecodingPool:
    """Processes that decode batches of pictures into slots of shared memory."""

    def __init__(self, preprocess: Preprocess, batch: int, slots: int, processes: int) -> None:
        self._context = get_context("spawn")  # a fork of a process with the threads of an engine may hang
        shape = (slots, batch, *preprocess.shape)
        self._memory = self._context.RawArray("B", int(np.prod(shape)))
        self.pixels: NDArray[np.uint8] = np.frombuffer(self._memory, np.uint8).reshape(shape)
        self._state = self._memory, shape, preprocess
        self._processes = processes
        self._pool = self._started(processes)
        self._lock = Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def submit(self, slot: int, paths: Sequence[str]) -> Future[Errors]:
        """Begin to decode pictures into a slot."""
        with self._lock:
            try:
                return self._pool.submit(decode, slot, 0, paths)
            except BrokenProcessPool:
                self._pool = self._started(self._processes)
                return self._pool.submit(decode, slot, 0, paths)

    def errors_of(self, decoding: Future[Errors], slot: int, paths: Sequence[str]) -> Errors:
        """Wait for the pictures in a slot, and return the error of each that is broken.

        If a process was killed meanwhile, the pictures are decoded again one by one, and the picture that kills again
        is the broken one.
        """
        try:
            return decoding.result()
        except BrokenProcessPool:
            return self._one_by_one(slot, paths)

    def _one_by_one(self, slot: int, paths: Sequence[str]) -> Errors:
        errors: Errors = []
        pool = self._started(1)
        try:
            for place, path in enumerate(paths):
                try:
                    errors += pool.submit(decode, slot, place, [path]).result()
                except BrokenProcessPool:
                    errors.append(KILLED)
                    pool.shutdown()
                    pool = self._started(1)
        finally:
            pool.shutdown()
        return errors

    def _started(self, processes: int) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(processes, self._context, begin, self._state)
