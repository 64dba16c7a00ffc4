"""Atomic writes, and locks between processes."""

from __future__ import annotations

import fcntl
import os
import secrets
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def write(path: Path, *parts: bytes | str) -> None:
    """Replace a file atomically: readers see the old contents or the new. Text is UTF-8; missing folders are created.

    The contents reach the disk (fsync) before the file is renamed to `path`, so a power cut leaves no truncated file.
    A new file has the mode that the umask leaves, and a replaced one keeps its mode.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
    with new.open("xb") as file:
        try:
            with suppress(OSError):  # there is no file yet, or the file system has no modes
                os.fchmod(file.fileno(), stat.S_IMODE(path.stat().st_mode))
            for part in parts:
                file.write(part.encode() if isinstance(part, str) else part)
            file.flush()
            os.fsync(file.fileno())
            os.replace(new, path)
        except BaseException:
            new.unlink()
            raise


def follow_umask(path: Path) -> None:
    """Give a file that a library wrote for its owner alone the mode that the umask leaves.

    A file is created for its mode, since the umask of a process with threads cannot be read safely.
    """
    probe = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
    with probe.open("xb") as file:
        mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
    probe.unlink()
    path.chmod(mode)


def link(path: Path, other: Path) -> None:
    """Create `other` as a hard link to the file `path`, atomically replacing any file of that name."""
    with tempfile.TemporaryDirectory(dir=other.parent) as folder:
        second_name = Path(folder) / other.name
        second_name.hardlink_to(path)
        second_name.replace(other)


@contextmanager
def lock_if_free(path: Path) -> Iterator[bool]:
    """Hold an exclusive lock on the file `path` as `locked` does, unless another holder has the lock.

    Yields True if the lock is held.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on the file `path`, among threads and processes. The lock ends with its process."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
