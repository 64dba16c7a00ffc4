"""Lanes of an engine on a GPU: while one computes, the next batch is copied in and the last one copied out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Condition, Lock
from typing import Generic, TypeVar

LANES = 2
logger = logging.getLogger("bentoml.convserve")
Lane = TypeVar("Lane")

# Held while an inference is recorded or a plan is loaded. Both wait for the whole GPU, and CUDA refuses to wait for the
# whole GPU, and ends a recording, while any thread records. Threads that wait for their own stream need no lock.
# Destructors take none: the thread that they run in would wait for seconds, or for ever if another waits for what this
# one holds. A recording that a destructor ends is made again.
recording = Lock()


class Lanes(Generic[Lane]):
    """Lanes of one engine, each with a stream and buffers of its own, of which each runs one inference at a time.

    The first lane exists at once, the others when they are first used: by `prepare`, or when calls overlap. A later
    lane that cannot be made, or made ready, is given up: its memory is freed, and the calls wait for the first.
    """

    def __init__(self, make: Callable[[], Lane]) -> None:
        self._make = make
        self._lanes = {0: make()}
        self._numbers = set(range(LANES))  # of the lanes that were not given up
        self._free = set(range(LANES))
        self._changed = Condition()

    @property
    def count(self) -> int:
        """Number of lanes that may run at once."""
        return len(self._numbers)

    @contextmanager
    def taken(self, ready: Callable[[Lane], None]) -> Iterator[Lane]:
        """Wait for a free lane, call `ready` with the lane, and yield the lane, which is free again afterwards."""
        while (number := self._take(ready, self._numbers)) is None:
            pass
        try:
            yield self._lanes[number]
        finally:
            self._release(number)

    def prepare(self, ready: Callable[[Lane], None]) -> None:
        """Call `ready` with every lane, one after another: who held one and waited for another could wait forever."""
        for number in range(LANES):
            if self._take(ready, {number}) is not None:
                self._release(number)

    def _release(self, number: int) -> None:
        """Make a lane free for others."""
        with self._changed:
            self._free.add(number)
            self._changed.notify_all()

    def _take(self, ready: Callable[[Lane], None], wanted: set[int]) -> int | None:
        """Wait for a wanted lane that is free, and return its number, or None if the lane is, or had to be, given up.

        The lowest of the free lanes is taken: one thread needs the first lane only.
        """
        with self._changed:
            self._changed.wait_for(lambda: wanted & self._free or not wanted & self._numbers)
            number = min(wanted & self._free, default=None)
            if number is None:
                return None
            self._free.remove(number)
        try:
            if number not in self._lanes:
                self._lanes[number] = self._make()
            ready(self._lanes[number])
        except Exception as error:  # CUDA's errors have no class in common
            if not number:
                self._release(number)
                raise
            logger.warning(
                "an engine runs one batch at a time from now on, since a second one fails: %s; "
                "a lower CONVSERVE_MAX_BATCH needs less memory",
                error,
            )
            self._lanes.pop(number, None)
            with self._changed:
                self._numbers.remove(number)
                self._changed.notify_all()
            return None
        return number
