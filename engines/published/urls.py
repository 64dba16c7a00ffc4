"""Files by their URL, here, in a bucket or on a web server: fsspec's file systems, with errors of one class."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import fsspec


class BucketError(Exception):
    """Raised when a bucket cannot be used; the message names its URL and says what to do."""


@contextmanager
def reported(url: str) -> Iterator[None]:
    """Raise BucketError with one line for whatever a file system raises, since their libraries share no class."""
    try:
        yield
    except BucketError:
        raise
    except Exception as error:
        first_line = next(iter(str(error).splitlines()), "")
        raise BucketError(f"{url}: {type(error).__name__}: {first_line}".rstrip(": ")) from error


def open_url(url: str) -> tuple[Any, str]:
    """Return fsspec's file system of a URL or path, and its name there. Raises BucketError if there is none."""
    with reported(url):
        file_system, name = fsspec.core.url_to_fs(url, use_listings_cache=False)
    return file_system, name


def files_below(file_system: Any, name: str) -> dict[str, dict[str, Any]]:
    """Return all files below a folder, by name, with what a listing says of each. Raises what the file system raises.

    Where folders are listed one by one, one that cannot be read would be passed over if it were not asked to raise.
    """
    protocols = {file_system.protocol} if isinstance(file_system.protocol, str) else set(file_system.protocol)
    strict = {"on_error": "raise"} if protocols & {"file", "http"} else {}
    found: dict[str, dict[str, Any]] = file_system.find(name, detail=True, **strict)
    return dict(sorted(found.items()))
