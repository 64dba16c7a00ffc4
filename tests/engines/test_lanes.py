from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress

from engines.runtimes.lanes import LANES, Lanes


def ended(*work: Callable[[], object]) -> bool:
    """Run functions at once in threads, and return True if all of them end."""
    threads = [threading.Thread(target=each, daemon=True) for each in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(5)
    return not any(thread.is_alive() for thread in threads)


def test_threads_may_prepare_at_once() -> None:
    lanes = Lanes(object)
    both = threading.Barrier(2, timeout=0.1)
    readied = []

    def ready(lane: object) -> None:
        readied.append(lane)
        with suppress(threading.BrokenBarrierError):
            both.wait()  # so that each of two threads holds a lane, if both may

    assert ended(lambda: lanes.prepare(ready), lambda: lanes.prepare(ready))
    assert len(readied) == 2 * LANES
    assert len(set(readied)) == lanes.count == LANES


def test_a_lane_that_is_given_up_holds_nobody_up() -> None:
    lanes = Lanes(object)
    inside = threading.Event()

    def no_memory(lane: object) -> None:
        inside.set()
        time.sleep(0.1)
        raise RuntimeError("no memory")

    def gives_up() -> None:
        with suppress(RuntimeError), lanes.taken(no_memory):
            pass

    other = threading.Thread(target=gives_up, daemon=True)
    with lanes.taken(lambda lane: None):
        other.start()
        assert inside.wait(5)  # for the second lane
    assert ended(lambda: lanes.prepare(lambda lane: None), lambda: other.join(5))
    assert lanes.count == 1
