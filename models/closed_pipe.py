"""Output of a command whose reader may close the pipe early, as `| head` does: no error."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def may_be_closed() -> Iterator[None]:
    """End without an error if the reader of what is printed has closed the pipe."""
    try:
        yield
    except BrokenPipeError:
        if not reader_is_gone():
            raise
    finally:
        try:
            sys.stdout.flush()
        except BrokenPipeError:  # Python flushes once more at its end
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def reader_is_gone() -> bool:
    """Print an empty line, and return True if nobody reads it: a broken pipe may also be one between processes."""
    try:
        print(flush=True)
    except BrokenPipeError:
        return True
    return False
