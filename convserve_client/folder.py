"""Classification of a folder's pictures into a CSV file, which a later run continues."""

from __future__ import annotations

import csv
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from convserve_client.answers import Result, ServerProblem
from convserve_client.client import AsyncConvServeClient
from convserve_client.conversation import Question

COLUMNS = ("file", "label", "probability", "index", "model", "problem")
HEADER = f"{','.join(COLUMNS)}\n"
SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".webp"}
OF_THE_IMAGE = {0, 400, 413, 415, 500, 504}  # statuses of problems that another image need not have
LATE, MOST_LATE = 504, 3  # status of a picture that takes too long; so many in a row, and the server is too slow
LAST_LINE = 65536  # bytes at the end of a file, in which the last line begins
BAR = 30  # characters
REDRAWN_S = 0.1


class FolderError(Exception):
    """Raised with one line for people when a run cannot begin or go on."""


def pictures(folder: Path) -> list[str]:
    """Return the pictures in a folder and below, as sorted paths within the folder. Raises FolderError if none."""
    if not folder.is_dir():
        raise FolderError(f"{folder} is no folder")
    found = [
        os.path.relpath(os.path.join(parent, name), folder)
        for parent, _, names in os.walk(folder)
        for name in names
        if os.path.splitext(name)[1].lower() in SUFFIXES
    ]
    if not found:
        raise FolderError(f"{folder} has no picture: no file ends in {', '.join(sorted(SUFFIXES))}")
    return sorted(found)


@contextmanager
def opened(out: Path | None) -> Iterator[tuple[TextIO, set[str]]]:
    """Open a CSV file, or standard output, to write rows; yield also the pictures that have a row already.

    A last row that was cut off is removed. Raises FolderError if the file is another one.
    """
    if out is None:
        sys.stdout.write(HEADER)
        yield sys.stdout, set()
        return
    done = rows_in(out) if out.exists() and out.stat().st_size else None
    with out.open("a", encoding="utf-8", errors="surrogateescape", newline="") as file:
        if done is None:
            file.write(HEADER)
        yield file, done or set()


def rows_in(out: Path) -> set[str]:
    """Return the pictures that have a row in a CSV file, and cut off a last row that has no end."""
    with out.open("rb+") as file:
        if file.readline(len(HEADER)).decode(errors="replace") != HEADER:
            raise FolderError(f"{out} was not written by this command: its first line is not {HEADER.strip()}")
        size = file.seek(0, os.SEEK_END)
        begin = file.seek(max(0, size - LAST_LINE))
        file.truncate(begin + file.read().rfind(b"\n") + 1)
    with out.open(encoding="utf-8", errors="surrogateescape", newline="") as text:
        return {row[0] for row in csv.reader(text) if row} - {COLUMNS[0]}


def row_of(picture: str, result: Result) -> tuple[str | float, ...]:
    """Return the row of a picture. Raises FolderError for a problem that every picture would have."""
    if not isinstance(result, ServerProblem):
        best = result.predictions[0]
        return picture, best.label, f"{best.probability:.6f}", best.index, result.model, ""
    if result.status not in OF_THE_IMAGE or result.code == "unreachable":
        raise FolderError(str(result))
    return picture, "", "", "", "", str(result)


async def classify_folder(
    client: AsyncConvServeClient,
    folder: Path,
    question: Question,
    out: Path | None = None,
    *,
    batch: int,
    concurrency: int,
) -> str:
    """Write a row for each picture that has none yet, and return a line that says how many there are.

    Raises FolderError if the server cannot be asked any more; the rows so far remain, and the next run continues.
    """
    found = pictures(folder)
    with opened(out) as (file, done):
        todo = [picture for picture in found if picture not in done]
        writer = csv.writer(file, lineterminator="\n")
        bar = ProgressBar(len(todo))
        problems = 0
        results = client.classify_many(
            (folder / picture for picture in todo), question, batch=batch, concurrency=concurrency
        )
        try:
            count = late = 0
            async for result in results:
                late = late + 1 if isinstance(result, ServerProblem) and result.status == LATE else 0
                if late > MOST_LATE:
                    raise FolderError(str(result))
                writer.writerow(row_of(todo[count], result))
                count += 1
                problems += isinstance(result, ServerProblem)
                if count % batch == 0:
                    file.flush()
                bar.show(count)
        finally:
            await results.aclose()
            file.flush()
            bar.end()
    before = f", {len(found) - len(todo):,} had a row before" if len(found) > len(todo) else ""
    return f"{len(todo):,} pictures, of which {problems:,} have a problem{before}"


class ProgressBar:
    """Bar of what is done, on standard error if that is a terminal."""

    def __init__(self, total: int) -> None:
        self._total, self._began, self._drawn = total, time.monotonic(), 0.0
        self._shown = sys.stderr.isatty()

    def show(self, done: int) -> None:
        """Draw the bar, at most ten times a second and at the end."""
        now = time.monotonic()
        if not self._shown or (now < self._drawn + REDRAWN_S and done < self._total):
            return
        self._drawn = now
        rate = done / max(now - self._began, 1e-9)
        full = BAR * done // self._total
        bar = "#" * full + "." * (BAR - full)
        left = f"{rate:,.0f}/s, {(self._total - done) / rate:,.0f} s left"
        sys.stderr.write(f"\r[{bar}] {done:,} of {self._total:,}, {left}   ")
        sys.stderr.flush()

    def end(self) -> None:
        """Leave the line of the bar."""
        if self._shown and self._drawn:
            sys.stderr.write("\n")
