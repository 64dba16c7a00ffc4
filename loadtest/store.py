"""Store of measurements: files of JSON lines, one row per line, always written whole."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from shutil import copymode
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from loadtest.traffic import ScenarioError


class Row(BaseModel):
    """Immutable row. Unknown fields are ignored, so that rows of newer servers can be read."""

    model_config = ConfigDict(frozen=True)


AnyRow = TypeVar("AnyRow", bound=Row)


def read_rows(path: Path, kinds: TypeAdapter[AnyRow], command: str) -> list[AnyRow]:
    """Return the rows of a file that `python -m loadtest COMMAND` wrote.

    Raises ScenarioError if the file does not exist, or a line is not a row of these kinds.
    """
    try:
        return [kinds.validate_json(line) for line in path.read_text().splitlines()]
    except OSError as error:
        raise ScenarioError(f"{path}: {error.strerror}; `python -m loadtest {command}` writes it") from error
    except ValidationError as error:
        first = error.errors()[0]
        fault = f"{'.'.join(map(str, first['loc']))}: {first['msg']}".removeprefix(": ")
        raise ScenarioError(f"{path} is not what `python -m loadtest {command}` writes: {fault}") from error


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Replace the file by these rows. After a crash or a power cut the file holds all old rows or all new ones."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.new")
    with new.open("w") as file:
        file.writelines(f"{row.model_dump_json()}\n" for row in rows)
        file.flush()
        os.fsync(file.fileno())
    with suppress(FileNotFoundError):
        copymode(path, new)
    new.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # without this, the new name may be lost in a power cut
    finally:
        os.close(folder)
