"""Work of other processes on this machine during a measurement, which makes its times those of a shared machine."""

from __future__ import annotations

import os
import time

import psutil

from loadtest.peers.launch import PeerServer


class OtherWork:
    """Processor time that neither a server nor this process has used since the object was made."""

    def __init__(self, server: PeerServer) -> None:
        self._server = server
        self._started, self._before = time.monotonic(), self._seconds()

    def _seconds(self) -> float:
        """Return the processor seconds of others since the machine's start, with those that a hypervisor took away."""
        machine = psutil.cpu_times()
        # Linux counts the time of guests as time of users too.
        idle = sum(getattr(machine, name, 0.0) for name in ("idle", "iowait", "guest", "guest_nice"))
        own = os.times()
        return sum(machine) - idle - self._server.cpu_s() - sum(own[:4])

    def cores(self) -> float:
        """Return the mean number of cores that others kept busy."""
        return max(0.0, (self._seconds() - self._before) / (time.monotonic() - self._started))
