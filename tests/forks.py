"""Forks of one process, one for each line of stdin, so that what the process has imported is imported once."""

from __future__ import annotations

import os
import sys


def line_of_a_fork() -> str:
    """Return the line in its fork; the process itself prints each fork's exit status, and ends with its stdin."""
    for line in sys.stdin:
        sys.stdout.flush()
        if os.fork() == 0:
            return line
        print(os.waitstatus_to_exitcode(os.wait()[1]), flush=True)
    sys.exit()
