"""Named clients: keys by their hashes, rates, quotas of device time, and weights of their images in the queues."""

from __future__ import annotations

import fcntl
import hashlib
import mmap
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from enum import IntEnum
from math import ceil
from pathlib import Path
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

DEVICE_BURST_S = 1.0  # for which a client may use more device time than its quota, once


class ClientLimits(BaseModel):
    """Limits of one client, as `CONVSERVE_CLIENTS` has them; a limit that is left out is none.

    `rate` is requests a second, `burst` requests at once, by default those of a second, `device_ms_per_s` milliseconds
    of the device a second. Of two clients that both want more than there is, one gets `weight` times what another of
    weight 1 gets.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    key_sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    weight: Annotated[float, Field(ge=0.001, le=1000)] = 1.0
    rate: Annotated[float, Field(gt=0, le=1e6)] | None = None
    burst: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    device_ms_per_s: Annotated[float, Field(gt=0, le=1e6)] | None = None


class LimitReached(Exception):
    """Raised for a request of a client that has used up a limit.

    Carries the limit's name, its size and the seconds that it counts, and the seconds until another request may come.
    """

    def __init__(self, limit: str, size: float, window_s: float, wait_s: float) -> None:
        super().__init__(f"the client has used up its {limit}")
        self.limit, self.size, self.window_s, self.wait_s = limit, size, window_s, wait_s

    @property
    def headers(self) -> dict[str, str]:
        """Headers of the answer: when to come again, and the limit by the IETF's draft on RateLimit fields."""
        wait_s, window_s = max(1, ceil(self.wait_s)), max(1, ceil(self.window_s))
        return {
            "Retry-After": str(wait_s),
            "RateLimit-Policy": f'"{self.limit}";q={self.size:.0f};w={window_s}',
            "RateLimit": f'"{self.limit}";r=0;t={wait_s}',
        }


class Spent(IntEnum):
    """Column of `ClientUsage`: what a client spends."""

    REQUESTS = 0
    DEVICE = 1


class ClientUsage:
    """Times, on the machine's clock, until which clients have used up what they spend; all fronts share one file."""

    def __init__(self, clients: int, path: Path | None = None) -> None:
        """Share the file at `path`, or without a path count in this process."""
        shape = clients, len(Spent)
        self._until: NDArray[np.float64] = np.zeros(shape)
        self._lock: int | None = None  # descriptor of the file, which stays open
        if path:
            self._lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
            os.ftruncate(self._lock, self._until.nbytes)
            self._until = np.frombuffer(mmap.mmap(self._lock, self._until.nbytes)).reshape(shape)

    @contextmanager
    def of(self, client: int) -> Iterator[NDArray[np.float64]]:
        """Yield the times of a client, (requests, device), to read and to write while no other front does."""
        if self._lock is not None:
            fcntl.flock(self._lock, fcntl.LOCK_EX)
        try:
            yield self._until[client]
        finally:
            if self._lock is not None:
                fcntl.flock(self._lock, fcntl.LOCK_UN)


@dataclass(frozen=True, eq=False)
class Client:
    """Client with its number, the same in every process, and its name; number 0 is everybody without one."""

    number: int = 0
    name: str = ""
    weight: float = 1.0
    part: float = 1.0  # of the weights of all clients: the part of a queue's places that this client may have
    limits: ClientLimits | None = None
    usage: ClientUsage | None = None

    def admit(self, now: float) -> None:
        """Count a request at the time `now`. Raises LimitReached if it is one too many, or if the quota is used up.

        A request takes up 1 / rate seconds, and may lie as far ahead of now as the burst takes (the generic cell rate
        algorithm); device time is taken up when an image is queued, and may go beyond the quota once.
        """
        limits, usage = self.limits, self.usage
        if not limits or not usage or (limits.rate is None and limits.device_ms_per_s is None):
            return
        with usage.of(self.number) as until:
            if limits.device_ms_per_s is not None:
                wait_s = until[Spent.DEVICE] - now - DEVICE_BURST_S
                if wait_s > 0:
                    size = limits.device_ms_per_s * DEVICE_BURST_S
                    raise LimitReached("device-ms", size, DEVICE_BURST_S, float(wait_s))
            if limits.rate is not None:
                burst = limits.burst or max(1, ceil(limits.rate))
                taken_up = max(float(until[Spent.REQUESTS]), now) + 1 / limits.rate
                wait_s = taken_up - now - burst / limits.rate
                if wait_s > 1e-9:
                    raise LimitReached("requests", burst, burst / limits.rate, wait_s)
                until[Spent.REQUESTS] = taken_up

    def charge(self, device_s: float, now: float) -> None:
        """Count device time, in seconds, that an image is predicted to take."""
        if self.usage and self.limits and self.limits.device_ms_per_s is not None:
            with self.usage.of(self.number) as until:
                taken_up = 1000 * device_s / self.limits.device_ms_per_s
                until[Spent.DEVICE] = max(float(until[Spent.DEVICE]), now) + taken_up


NOBODY = Client()
SHADOWS = Client(number=0xFFFF, weight=0.1)  # whose images give way to those that somebody waits for
current: ContextVar[Client] = ContextVar("client", default=NOBODY)  # of the request that this task answers


class Clients:
    """Clients of the settings, by their numbers and by their keys."""

    def __init__(self, limits: Mapping[str, ClientLimits], path: Path | None = None) -> None:
        """Share what the clients use in the file at `path`, or count in this process."""
        usage = ClientUsage(1 + len(limits), path) if limits else None
        all_weights = NOBODY.weight + sum(own.weight for own in limits.values())
        named = [
            Client(number, name, own.weight, own.weight / all_weights, own, usage)
            for number, (name, own) in enumerate(sorted(limits.items()), 1)
        ]
        self.by_number = (Client(part=NOBODY.weight / all_weights), *named)
        self._by_hash = {client.limits.key_sha256: client for client in self.by_number if client.limits}

    def find(self, presented: Iterable[str]) -> Client | None:
        """Return the client whose key is among those that a request presents, or None.

        The hashes of keys are looked up, so that timing tells nothing of the keys.
        """
        if not self._by_hash:
            return None
        hashes = (hashlib.sha256(key.encode()).hexdigest() for key in presented if key)
        return next((self._by_hash[found] for found in hashes if found in self._by_hash), None)
