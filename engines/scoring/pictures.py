"""Pictures to score: those of a folder, a bucket or a list, and their bytes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from engines.published.urls import BucketError, files_below, open_url, reported

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")


def find(source: str) -> list[str]:
    """Return the pictures of a source: absolute paths, or URLs such as s3://bucket/cat.jpg.

    A folder or bucket has all below it whose names end in one of SUFFIXES, sorted. A file that is no picture by its
    name is a list: a path or URL a line. The URL of a folder on a web server ends in a slash. Raises BucketError with
    the remedy if the source cannot be read, or has no picture.
    """
    files, name = open_url(source)
    with reported(source):
        try:
            if not source.endswith("/") and files.isfile(name):
                lines = [source] if name.lower().endswith(SUFFIXES) else files.cat_file(name).decode().splitlines()
                found = list(dict.fromkeys(located(line) for line in map(str.strip, lines) if line))
            else:
                folder = located(source).rstrip("/")
                prefix = len(name.rstrip("/"))
                found = [
                    f"{folder}{below[prefix:]}"
                    for below in files_below(files, name)
                    if below.lower().endswith(SUFFIXES)
                ]
        except FileNotFoundError:
            raise BucketError(f"there is no {source}") from None
    if not found:
        endings = ", ".join(SUFFIXES)
        raise BucketError(f"{source} has no picture: a folder or bucket with {endings}, or a file with a path a line")
    return found


def located(path: str) -> str:
    """Return a path as an absolute one, which means the same to other processes, and a URL as it is."""
    return path if "://" in path else os.path.abspath(path)


def read(paths: Sequence[str]) -> list[bytes | Exception]:
    """Return the bytes of pictures, in the order of `paths`, each or the error that reading it raised.

    Files in a bucket are read at once, not one after another.
    """
    opened: list[tuple[Any, Any]] = []  # file system and name there, or None and an error
    for path in paths:
        try:
            opened.append(open_url(path))
        except BucketError as error:
            opened.append((None, error))
    bodies: list[bytes | Exception] = [error for _, error in opened]
    for files in {id(files): files for files, _ in opened if files}.values():
        places = [place for place, (own, _) in enumerate(opened) if own is files]
        found = files.cat_ranges([opened[place][1] for place in places], None, None, on_error="return")
        for place, body in zip(places, found, strict=True):
            bodies[place] = body
    return bodies
