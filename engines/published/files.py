"""Writing a file whole or not at all, and one process at a time."""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def write(path: Path, *parts: bytes) -> None:
    """Write a file that a reader sees as it was, or whole; folders that are missing are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f"{path.name}.", delete=False) as file:
        try:
            for part in parts:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
            os.replace(file.name, path)
        except BaseException:
            Path(file.name).unlink()
            raise


def link(path: Path, other: Path) -> None:
    """Have a file by another name too, whose reader sees what was there before, or it, whole."""
    with tempfile.TemporaryDirectory(dir=other.parent) as folder:
        made = Path(folder) / other.name
        made.hardlink_to(path)
        made.replace(other)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock `path`, which one thread of one process has at a time, and which dies with it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
