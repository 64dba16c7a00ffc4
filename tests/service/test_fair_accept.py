"""Tests of fronts that accept from one socket: even shares, also of a burst, and a front that is stuck."""

from __future__ import annotations

import asyncio
import socket
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest

from service.fair_accept import Connections, Listener

pytestmark = pytest.mark.anyio


class Counted(asyncio.Protocol):
    """Connection that is counted as closed when it is lost."""

    def __init__(self, counted: Connections) -> None:
        self._counted = counted

    def connection_lost(self, exc: Exception | None) -> None:
        self._counted.closed()


def counts(path: Path) -> list[int]:
    data = path.read_bytes()
    return [int.from_bytes(data[at : at + 4], "little") for at in range(0, len(data), 4)]


async def until(path: Path, total: int) -> list[int]:
    async with asyncio.timeout(10):
        while sum(counts(path)) != total:
            await asyncio.sleep(0.002)
    return counts(path)


async def test_a_burst_is_shared_evenly_and_closed_connections_count_no_more(tmp_path: Path) -> None:
    path = tmp_path / "connections"
    with socket.create_server(("127.0.0.1", 0), backlog=256) as listening, ExitStack() as duplicates:
        clients = [socket.create_connection(listening.getsockname()) for _ in range(120)]
        fronts = [Connections(path, 3, own) for own in range(3)]
        listeners = [
            Listener(duplicates.enter_context(listening.dup()), partial(Counted, own), None, own) for own in fronts
        ]
        shares = await until(path, 120)
        assert max(shares) - min(shares) <= 6
        for client in clients[:60]:
            client.close()
        await until(path, 60)
        clients += [socket.create_connection(listening.getsockname()) for _ in range(60)]
        shares = await until(path, 120)
        assert max(shares) - min(shares) <= 6
        for listener in listeners:
            listener.close()
        with socket.create_connection(listening.getsockname()):
            await asyncio.sleep(0.05)
            assert sum(counts(path)) == 120
        for client in clients:
            client.close()
        await until(path, 0)


async def test_a_front_accepts_all_while_the_other_is_stuck(tmp_path: Path) -> None:
    path = tmp_path / "connections"
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listening:
        own, _ = (Connections(path, 2, place) for place in range(2))
        listener = Listener(listening, lambda: Counted(own), None, own)
        clients = [socket.create_connection(listening.getsockname()) for _ in range(20)]
        assert await until(path, 20) == [20, 0]
        listener.close()
        for client in clients:
            client.close()
        await until(path, 0)
