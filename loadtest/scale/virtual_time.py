"""Event loop whose time is virtual: hours of waiting pass in no time, and every run is the same."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

Result = TypeVar("Result")


class VirtualTime(selectors.SelectSelector):
    """Selector that waits for nothing: the time jumps to the next timer when no task can run."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Let `timeout` seconds pass. Raises AssertionError if there is no timer."""
        assert timeout is not None, "all wait for each other"
        self.now += max(0.0, timeout)
        return []


def virtual_loop() -> asyncio.AbstractEventLoop:
    """Return an event loop whose time is virtual and begins with 0. Threads and sockets cannot wake it."""
    time = VirtualTime()
    loop = asyncio.SelectorEventLoop(time)
    loop.time = lambda: time.now  # type: ignore[method-assign]
    return loop


def simulated(main: Coroutine[Any, Any, Result]) -> Result:
    """Run a coroutine in virtual time, and return its result."""
    with asyncio.Runner(loop_factory=virtual_loop) as runner:
        return runner.run(main)


def now() -> float:
    """Return the time of the running event loop, in seconds."""
    return asyncio.get_running_loop().time()
