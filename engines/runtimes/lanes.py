"""Lanes of an engine on a GPU: while one computes, the next batch is copied in and the last one copied out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from queue import PriorityQueue
from threading import Lock
from typing import Generic, TypeVar

LANES = 2
logger = logging.getLogger("bentoml.convserve")
Lane = TypeVar("Lane")

# Held while an inference is recorded or a plan is loaded. Both wait for the whole GPU, and CUDA refuses to wait for the
# whole GPU, and ends a recording, while any thread records. Threads that wait for their own stream need no lock.
recording = Lock()


class Lanes(Generic[Lane]):
    """Lanes of one engine, each with a stream and buffers of its own, of which each runs one inference at a time.

    The first lane exists at once, the others when they are first used: by `prepare`, or when calls overlap. A later
    lane that cannot be made, or made ready, is given up: its memory is freed, and the calls wait for the first.
    """

    def __init__(self, make: Callable[[], Lane]) -> None:
        self.count = LANES
        self._make = make
        self._lanes = {0: make()}
        self._free: PriorityQueue[int] = PriorityQueue()  # the lowest first: one thread needs the first lane only
        for number in range(LANES):
            self._free.put(number)

    @contextmanager
    def taken(self, ready: Callable[[Lane], None]) -> Iterator[Lane]:
        """Wait for a free lane, call `ready` with the lane, and yield the lane, which is free again afterwards."""
        while (number := self._take(ready)) is None:
            pass
        try:
            yield self._lanes[number]
        finally:
            self._free.put(number)

    def prepare(self, ready: Callable[[Lane], None]) -> None:
        """Call `ready` with every lane."""
        held: list[int] = []
        try:
            while len(held) < self.count:
                number = self._take(ready)
                held += [] if number is None else [number]
        finally:
            for number in held:
                self._free.put(number)

    def _take(self, ready: Callable[[Lane], None]) -> int | None:
        """Wait for a free lane, and return its number, or None if the lane had to be given up."""
        number = self._free.get()
        try:
            if number not in self._lanes:
                self._lanes[number] = self._make()
            ready(self._lanes[number])
        except Exception as error:  # CUDA's errors have no class in common
            if not number:
                self._free.put(number)
                raise
            logger.warning(
                "an engine runs one batch at a time from now on, since a second one fails: %s; "
                "a lower CONVSERVE_MAX_BATCH needs less memory",
                error,
            )
            self._lanes.pop(number, None)
            self.count -= 1
            return None
        return number
