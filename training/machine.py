"""Errors of the machine in one line: no space, no memory, no right to write, no shared memory."""

from __future__ import annotations

import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from safetensors import SafetensorError

from models.closed_pipe import reader_is_gone
from training.errors import MachineError

REMEDIES = {
    errno.ENOSPC: "free some space there",
    errno.EDQUOT: "free some space there",
    errno.EFBIG: "`ulimit -f` limits the size of a file",
    errno.EACCES: "this user needs the right to use it",
    errno.EPERM: "this user needs the right to use it",
    errno.ENOTDIR: "a file is where a folder must be",
    errno.EEXIST: "a file is where a folder must be",
    errno.EMFILE: "`ulimit -n` limits the number of open files",
    errno.EAGAIN: "`ulimit -u`, or a container's --pids-limit, limits the number of processes and threads",
}
SHARED_MEMORY = "shared memory is full: `docker run --shm-size=2g` enlarges /dev/shm"
MEMORY = "memory is not enough: a smaller --set batch=… or --set edge=… needs less"
# How torch, its worker processes, onnxruntime and Python say so.
TEXTS = (
    (r"unable to (allocate|open) shared memory|unable to write to file </|killed by signal: Bus error", SHARED_MEMORY),
    (r"can't allocate memory|out of memory|bad allocation|std::bad_alloc|Cannot allocate memory", MEMORY),
    (r"DataLoader worker .*(killed by signal|exited unexpectedly)", f"a process that decodes pictures ended; {MEMORY}"),
    (r"can't start new thread", REMEDIES[errno.EAGAIN]),
    (r"No working C\+\+ compiler|Failed to find C compiler", "--compile needs a C++ compiler: `apt install g++`"),
    (r"No space left on device", REMEDIES[errno.ENOSPC]),
)


@contextmanager
def machine_errors(path: Path | None = None, other: str = "") -> Iterator[None]:
    """Turn errors of the machine into a MachineError of one line, with the remedy; raise others unchanged.

    The line names the file of the error, else `path`, and ends with `other`, which says how to go on. `other` is left
    out where a file outside of `path` may not be used.
    """
    try:
        yield
    except (MachineError, OSError, SafetensorError, MemoryError, RuntimeError) as error:
        if isinstance(error, BrokenPipeError) and reader_is_gone():
            raise
        reason = str(error) if isinstance(error, MachineError) else of_system(error, path) or of_text(error)
        if reason is None:
            raise
        elsewhere = path and isinstance(error, PermissionError) and not reason.startswith(str(path))
        raise MachineError(reason + (f"; {other}" if other and not elsewhere else "")) from error


def of_system(error: Exception, path: Path | None) -> str | None:
    """Return the path, the reason and the remedy of an error of the operating system, else None."""
    number = error.errno if isinstance(error, OSError) else None
    if isinstance(error, SafetensorError) and (found := re.search(r"os error (\d+)", str(error))):
        number = int(found[1])
    if number is None:
        return str(error) if isinstance(error, OSError) else None
    place = getattr(error, "filename", None) or path
    # A copy that fails for want of space names the source; temporary files are beside `path` or in the folder.
    temporary = str(place).startswith((f"{path}.", f"{path}/{tempfile.gettempprefix()}"))
    if path and (temporary or number in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}):
        place = path
    reason = "; ".join([os.strerror(number), *([REMEDIES[number]] if number in REMEDIES else [])])
    return f"{place}: {reason}" if place else reason


def of_text(error: Exception) -> str | None:
    """Return what an error of a library says about the machine, with the remedy, else None."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return MEMORY
    return next((reason for pattern, reason in TEXTS if re.search(pattern, str(error))), None)


def check_writable(folder: Path, other: str = "") -> None:
    """Raise MachineError if no file can be written in the folder. A folder that is missing is so afterwards."""
    with machine_errors(folder, other):
        missing = [path for path in (folder, *folder.parents) if not path.exists()]
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder) as file:
                file.write(b"x")
        finally:
            with suppress(OSError):  # another process writes there
                for path in missing:
                    path.rmdir()


def check_appendable(file: Path) -> None:
    """Raise MachineError if lines cannot be appended to the file, which need not exist yet."""
    check_writable(file.parent)
    if file.exists():
        with machine_errors(file), file.open("a"):
            pass


def check_room(folder: Path, needed: int) -> None:
    """Raise MachineError if fewer than `needed` bytes are free on the disk of the folder, which need not exist yet."""
    free = shutil.disk_usage(next(path for path in (folder, *folder.absolute().parents) if path.exists())).free
    if free < needed:
        raise MachineError(f"{folder}: checkpoints need {needed / 1e6:,.1f} MB, {free / 1e6:,.1f} MB are free")
