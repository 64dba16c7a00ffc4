"""Pace of refusals, so that clients who ask again at once leave the processor to the answers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

A_SECOND = 200  # refusals that are sent without a wait
LONGEST_S = 1.0  # for which a refusal waits for its turn


class Refusals:
    """Turns of refusals, at most 200 a second; a refusal waits one second at most.

    On two cores, 256 connections that asked again the moment they were refused took two thirds of the processor.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._next = 0.0  # time of the next turn

    async def turn(self, deadline: float) -> None:
        """Wait for the turn of one refusal, at most half the time that its request has left."""
        now = self._clock()
        turn = max(self._next, now)
        wait_s = min(turn - now, LONGEST_S, max(0.0, (deadline - now) / 2))
        self._next = min(turn + 1 / A_SECOND, now + LONGEST_S)
        if wait_s > 0:
            await asyncio.sleep(wait_s)
