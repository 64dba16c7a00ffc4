"""Cache of compiled engines on disk: one process builds, files are written whole or not at all."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TypeVar

from engines.published import files, store

Compiled = TypeVar("Compiled")
DIGEST_BYTES = 32
logger = logging.getLogger("bentoml.convserve")


def cached(
    key: Sequence[str],
    build: Callable[[], Compiled],
    dump: Callable[[Compiled], bytes],
    load: Callable[[bytes], Compiled],
) -> Compiled:
    """Load the compiled engine of `key` with `load`; if no undamaged one is cached, call `build` and cache the result.

    `dump` turns the result into the bytes to write. If several processes need the same engine, one builds it and the
    others wait. Where nothing can be written, every call builds.
    """
    path = path_of(key)
    if (compiled := read(path, load)) is not None:
        return compiled
    with ExitStack() as stack:
        try:
            stack.enter_context(files.locked(path.with_suffix(".lock")))
        except OSError as error:
            logger.warning("the compiled engine cannot be cached: %s", error)
            return build()
        if (compiled := read(path, load)) is not None:  # another process has built it meanwhile
            return compiled
        compiled = build()
        keep(path, dump(compiled))
        return compiled


def path_of(key: Sequence[str]) -> Path:
    """Return the path of the file for a key, whether or not the file exists."""
    return store.root().parent / "convserve-engines" / hashlib.sha256("\n".join(key).encode()).hexdigest()


def keep(path: Path, content: bytes, others: Sequence[Path] = ()) -> None:
    """Write a file of the cache and link it under the paths of `others`; log a warning if either fails."""
    try:
        files.write(path, hashlib.sha256(content).digest(), content)
        for other in others:
            files.link(path, other)
    except OSError as error:
        logger.warning("the compiled engine cannot be cached: %s", error)


def read(path: Path, load: Callable[[bytes], Compiled]) -> Compiled | None:
    """Load a file of the cache; return None if it is absent, damaged, or refused by `load` with a RuntimeError."""
    try:
        data = path.read_bytes()
    except OSError:
        return None
    digest, content = data[:DIGEST_BYTES], data[DIGEST_BYTES:]
    if hashlib.sha256(content).digest() != digest:
        logger.warning("%s is damaged, and is compiled again", path)
        return None
    try:
        return load(content)
    except RuntimeError as error:
        logger.warning("%s cannot be read, and is compiled again: %s", path, error)
        return None
