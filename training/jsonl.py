"""Store of records: a file of JSON lines, one per record."""

from __future__ import annotations

import fcntl
from pathlib import Path
from typing import TypeVar

from engines.published.manifest import Record

R = TypeVar("R", bound=Record)


def append(path: Path, record: Record) -> None:
    """Append a record as one whole line, also while other processes append theirs; missing folders are created."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(record.model_dump_json() + "\n")


def read(path: Path, kind: type[R]) -> list[R]:
    """Return all records of the file, which are of class `kind`, oldest first; none if the file does not exist."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [kind.model_validate_json(line) for line in lines]
