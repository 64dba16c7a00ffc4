"""Atomic writes, and locks between processes."""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def write(path: Path, *parts: bytes | str) -> None:
    """Replace a file atomically: readers see the old contents or the new. Text is UTF-8; missing folders are created.

    The contents reach the disk (fsync) before the file is renamed to `path`, so a power cut leaves no truncated file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f"{path.name}.", delete=False) as file:
        try:
            for part in parts:
                file.write(part.encode() if isinstance(part, str) else part)
            file.flush()
            os.fsync(file.fileno())
            os.replace(file.name, path)
        except BaseException:
            Path(file.name).unlink()
            raise


def link(path: Path, other: Path) -> None:
    """Create `other` as a hard link to the file `path`, atomically replacing any file of that name."""
    with tempfile.TemporaryDirectory(dir=other.parent) as folder:
        second_name = Path(folder) / other.name
        second_name.hardlink_to(path)
        second_name.replace(other)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on the file `path`, among threads and processes. The lock ends with its process."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
