"""Store of records: a file of JSON lines, one per record."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from engines.published.manifest import Record
from training.errors import TrainingError
from training.machine import machine_errors

R = TypeVar("R", bound=Record)


def append(path: Path, record: Record) -> None:
    """Append a record as one whole line, also while other processes append theirs; missing folders are created.

    Raises MachineError if the line cannot be written; the file is as it was then.
    """
    with machine_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab", buffering=0) as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            line, end = f"{record.model_dump_json()}\n".encode(), file.seek(0, os.SEEK_END)
            try:
                while line:  # a disk that becomes full takes a part
                    line = line[file.write(line) :]
            except OSError:
                file.truncate(end)
                raise


def read(path: Path, kind: type[R]) -> list[R]:
    """Return all records of the file, which are of class `kind`, oldest first; none if the file does not exist.

    Raises TrainingError, which names the line, if a line is no such record.
    """
    lines = path.read_bytes().splitlines() if path.exists() else []
    records: list[R] = []
    for number, line in enumerate(lines, 1):
        try:
            records.append(kind.model_validate_json(line))
        except ValidationError as error:
            raise TrainingError(f"{path}, line {number}: no {kind.__name__}: {error.errors()[0]['msg']}") from error
    return records
