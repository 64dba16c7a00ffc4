"""Compiled engines on disk: made by one process, kept whole or not at all, made anew where damaged."""

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
    """What `load` makes of the entry that `key` names; where there is none that is whole, what `build` makes.

    That is kept, in the form that `dump` gives it. Of several processes that want the same entry, one builds it. Where
    nothing can be written, it is built each time.
    """
    path = path_of(key)
    if (found := read(path, load)) is not None:
        return found
    with ExitStack() as stack:
        try:
            stack.enter_context(files.locked(path.with_suffix(".lock")))
        except OSError as error:
            logger.warning("what is compiled cannot be kept: %s", error)
            return build()
        if (found := read(path, load)) is not None:  # another has built it meanwhile
            return found
        compiled = build()
        keep(path, dump(compiled))
        return compiled


def path_of(key: Sequence[str]) -> Path:
    """Where the entry that a key names is, or would be."""
    return store.root().parent / "convserve-engines" / hashlib.sha256("\n".join(key).encode()).hexdigest()


def keep(path: Path, content: bytes, others: Sequence[Path] = ()) -> None:
    """Write an entry, the same by other names too, if that can be done."""
    try:
        files.write(path, hashlib.sha256(content).digest(), content)
        for other in others:
            files.link(path, other)
    except OSError as error:
        logger.warning("what is compiled cannot be kept: %s", error)


def read(path: Path, load: Callable[[bytes], Compiled]) -> Compiled | None:
    """What an entry holds; None if there is none, or it is not what was written, or cannot be loaded."""
    try:
        entry = path.read_bytes()
    except OSError:
        return None
    digest, content = entry[:DIGEST_BYTES], entry[DIGEST_BYTES:]
    if hashlib.sha256(content).digest() != digest:
        logger.warning("%s is damaged, and is compiled again", path)
        return None
    try:
        return load(content)
    except RuntimeError as error:
        logger.warning("%s cannot be read, and is compiled again: %s", path, error)
        return None
