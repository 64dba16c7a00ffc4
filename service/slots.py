"""Shared memory between fronts and a device process: a slot an image, and a table of what the device expects."""

from __future__ import annotations

import mmap
import os

import numpy as np
from numpy.typing import NDArray

from service.batches import Jpeg, Logits, Picture, Pixels

SLOT_BYTES = 4 << 20  # least size of a slot, of 1,182 x 1,182 pixels; only the pages that are used take memory
ROWS = 1024  # engines that can be loaded at a time
FRONTS = 512  # twice the most fronts: a front may connect before its predecessor is known to have ended


def anonymous(size: int) -> int:
    """Return a descriptor of `size` bytes of memory, which is gone with the last process that has the descriptor.

    The memory has no name, so that nothing remains of a killed process, and does not count against /dev/shm.
    """
    descriptor = os.memfd_create("convserve")
    os.ftruncate(descriptor, size)
    return descriptor


class Slots:
    """Slots of one front, each for the pixels, or the JPEG, of one image and then for its logits."""

    def __init__(self, descriptor: int, count: int, size: int) -> None:
        """Map the memory of a descriptor, which stays open: `count` slots of `size` bytes."""
        self.count, self.size = count, size
        self._memory = np.frombuffer(mmap.mmap(descriptor, count * size), np.uint8).reshape(count, size)

    def put(self, slot: int, picture: Picture) -> None:
        """Copy the pixels, or the bytes, of an image into a slot."""
        if isinstance(picture, Jpeg):
            self._memory[slot, : len(picture.body)] = np.frombuffer(picture.body, np.uint8)
        else:
            self._memory[slot, : picture.nbytes] = picture.reshape(-1)

    def pixels(self, slot: int, shape: tuple[int, int, int]) -> Pixels:
        """Return the pixels in a slot, (height, width, channels), without a copy."""
        height, width, channels = shape
        return self._memory[slot, : height * width * channels].reshape(shape)

    def jpeg(self, slot: int, length: int) -> Jpeg:
        """Return the JPEG of `length` bytes in a slot, without a copy."""
        return Jpeg(self._memory[slot, :length].data)

    def put_logits(self, slot: int, logits: Logits) -> None:
        """Copy the logits of an image, (classes,), into its slot."""
        self._memory[slot, : logits.nbytes].view(np.float32)[:] = logits

    def logits(self, slot: int, classes: int) -> Logits:
        """Return a copy of the logits in a slot, (classes,)."""
        copy: Logits = self._memory[slot, : 4 * classes].view(np.float32).copy()
        return copy


class Expectations:
    """Table of a device: for each engine, what a front must know to refuse a request before its body is read.

    The device writes, the fronts read: the images that wait, and the predicted seconds of the backlog with one image
    more, of one image, and of the best batch. `free_at` is on the machine's clock, in seconds. Each front writes, in a
    column of its own of `decoding` and of `reserved`, its images that are being decoded, and those that wait for
    earlier images of their request.
    """

    COLUMNS = ("waiting", "backlog_s", "one_s", "batch_s")
    SIZE = (ROWS + 1) * len(COLUMNS) * 8 + 2 * ROWS * FRONTS * 4

    def __init__(self, descriptor: int) -> None:
        """Map the table of a descriptor, which stays open."""
        memory = mmap.mmap(descriptor, self.SIZE)
        shape = ROWS + 1, len(self.COLUMNS)
        self._table: NDArray[np.float64] = np.frombuffer(memory, np.float64, shape[0] * shape[1]).reshape(shape)
        counts: NDArray[np.uint32] = np.frombuffer(memory, np.uint32, offset=self._table.nbytes)
        self.decoding, self.reserved = counts.reshape(2, ROWS, FRONTS)

    def forget(self, *, row: int | slice = slice(None), column: int | slice = slice(None)) -> None:
        """Forget the images of all fronts for an engine, or of one front for all engines."""
        self.decoding[row, column] = self.reserved[row, column] = 0

    @property
    def free_at(self) -> float:
        """Predicted end of the running batch."""
        return float(self._table[ROWS, 0])

    @free_at.setter
    def free_at(self, seconds: float) -> None:
        self._table[ROWS, 0] = seconds

    def put(self, row: int, *values: float) -> None:
        """Write the values of an engine, in the order of COLUMNS."""
        self._table[row] = values

    def get(self, row: int) -> list[float]:
        """Return the values of an engine, in the order of COLUMNS."""
        values: list[float] = self._table[row].tolist()
        return values
