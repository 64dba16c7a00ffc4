"""Even shares of connections among fronts, which all accept from one socket.

The kernel gives a new connection to whichever front accepts first: of 16, one of two fronts had 12, of 256 one had 157.
Requests to a front with many connections wait while another front idles. So a front that has more connections than
another accepts none for a moment, in which the other can.
"""

from __future__ import annotations

import asyncio
import logging
import mmap
import socket
import ssl as tls
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import uvloop
from numpy.typing import NDArray

MARGIN, MARGIN_SHARE = 1, 8  # a front may have one connection, and an eighth of its own, beyond the least of all fronts
PAUSE_S, PAUSES = 0.002, 10  # for another front to accept; then this front does, since the others may be stuck

WARN_S = 10.0  # between two warnings
logger = logging.getLogger("bentoml.convserve")
Make = Callable[[], asyncio.Protocol]


class Connections:
    """Numbers of open connections of all fronts, in a file that the fronts share."""

    current: ClassVar[Connections | None] = None  # of this process, if it is one of several fronts

    def __init__(self, path: Path, fronts: int, own: int) -> None:
        """Share the file at `path`; `own` is the place of this front, from 0, which begins without a connection."""
        with path.open("a+b") as file:
            file.truncate(4 * fronts)
            self._counts: NDArray[np.uint32] = np.frombuffer(mmap.mmap(file.fileno(), 4 * fronts), np.uint32)
        self._own = own
        self._counts[own] = 0

    def opened(self) -> None:
        """Count a connection more of this front."""
        self._counts[self._own] += 1

    def closed(self) -> None:
        """Count a connection less of this front."""
        self._counts[self._own] -= 1

    def room(self, others: bool = True) -> int:
        """Return the number of connections that this front may accept now; without `others`, if these may be stuck."""
        own, least = int(self._counts[self._own]), int(self._counts.min())
        return (least if others else own) + MARGIN + own // MARGIN_SHARE + 1 - own


class FairLoop(uvloop.Loop):
    """Event loop whose servers accept no more than the share of this front."""

    async def create_server(  # type: ignore[override]
        self, protocol_factory: Make, *args: Any, **options: Any
    ) -> Any:
        """Return a server; where this process is one of several fronts, one that accepts an even share."""
        if Connections.current and (listening := options.get("sock")):
            return Listener(listening, protocol_factory, options.get("ssl"), Connections.current)
        return await super().create_server(protocol_factory, *args, **options)


def loop_factory(use_subprocess: bool = False) -> Callable[[], asyncio.AbstractEventLoop]:
    """Return the class of the event loop, for uvicorn."""
    return FairLoop


class Listener:
    """Listening socket of a front, from which the front accepts its share."""

    def __init__(self, listening: socket.socket, make: Make, ssl: tls.SSLContext | None, counted: Connections) -> None:
        """Accept connections from now on, each for a protocol that `make` returns."""
        listening.setblocking(False)
        self._listening, self._make, self._ssl, self._counted = listening, make, ssl, counted
        self._loop = asyncio.get_running_loop()
        self._handshakes: set[asyncio.Task[Any]] = set()
        self._pauses = 0  # since this front has accepted a connection
        self._resuming: asyncio.TimerHandle | None = None
        self._warned_at = -WARN_S
        self._resume()

    def _resume(self) -> None:
        """Accept connections as they come."""
        self._resuming = None
        self._loop.add_reader(self._listening, self._accept)

    def _accept(self) -> None:
        """Accept the connections that are there, up to this front's share."""
        for _ in range(self._counted.room(self._pauses < PAUSES)):
            try:
                connection, _ = self._listening.accept()
            except BlockingIOError:
                self._pauses = 0
                return
            except OSError as error:  # no descriptor is free, or the client has gone already
                self._warn(error)
                break
            self._counted.opened()
            connection.setblocking(False)
            begin = self._loop.connect_accepted_socket(self._make, connection, ssl=self._ssl)
            handshake = self._loop.create_task(begin)
            self._handshakes.add(handshake)
            handshake.add_done_callback(self._begun)
        self._pauses = 0 if self._pauses == PAUSES else self._pauses + 1
        self._loop.remove_reader(self._listening)
        self._resuming = self._loop.call_later(PAUSE_S, self._resume)

    def _warn(self, error: OSError) -> None:
        """Log an error, at most one each ten seconds."""
        if (now := self._loop.time()) > self._warned_at + WARN_S:
            self._warned_at = now
            logger.warning("cannot accept a connection: %s", error)

    def _begun(self, handshake: asyncio.Task[Any]) -> None:
        """Count a connection that failed to begin as closed; another is, when its protocol loses the connection."""
        self._handshakes.discard(handshake)
        if handshake.cancelled() or handshake.exception():
            self._counted.closed()

    def close(self) -> None:
        """Accept no more connections."""
        if self._resuming:
            self._resuming.cancel()
        self._loop.remove_reader(self._listening)

    async def wait_closed(self) -> None:
        """Return: after `close` no connection is accepted any more."""
