"""Compiled engines on disk: made by one process, kept whole or not at all, made anew where damaged."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from engines import files, store

Compiled = TypeVar("Compiled")
DIGEST_BYTES = 32
logger = logging.getLogger("bentoml.convserve")


def cached(
    key: Sequence[str],
    build: Callable[[], Compiled],
    dump: Callable[[Compiled], bytes],
    load: Callable[[bytes], Compiled],
) -> Compiled:
    """What `load` makes of the entry that `key` names; where there is none that is whole, what `build` makes.

    That is kept, in the form that `dump` gives it. Of several processes that want the same entry, one builds it. Where
    nothing can be written, it is built each time.
    """
    path = store.root().parent / "convserve-engines" / hashlib.sha256("\n".join(key).encode()).hexdigest()
    name = " ".join(key)
    try:
        with files.locked(path.with_suffix(".lock")):
            content = read(path)
            if content is not None:
                try:
                    return load(content)
                except RuntimeError as error:
                    logger.warning("%s: what was compiled cannot be read, and is compiled again: %s", name, error)
            compiled = build()
            data = dump(compiled)
            files.write(path, hashlib.sha256(data).digest() + data)
            return compiled
    except OSError as error:
        logger.warning("%s: what is compiled cannot be kept: %s", name, error)
        return build()


def read(path: Path) -> bytes | None:
    """An entry's content; None if there is none, or it is not what was written."""
    try:
        entry = path.read_bytes()
    except FileNotFoundError:
        return None
    digest, content = entry[:DIGEST_BYTES], entry[DIGEST_BYTES:]
    if hashlib.sha256(content).digest() != digest:
        logger.warning("%s is damaged, and is compiled again", path)
        return None
    return content
