"""JPEGs of a folder, by which other ways to decode are compared with Pillow's."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from engines.published.essentials import essentials
from engines.published.picture import open_picture, upright

ENDINGS = (".jpg", ".jpeg")  # in capitals too
LEAST = 8  # JPEGs that agree: fewer show too little to serve by
logger = logging.getLogger("bentoml.convserve")


def find(folder: Path) -> list[Path]:
    """Return the JPEGs in a folder and the folders in it, by their names. Raises ValueError if there are none."""
    if not folder.exists():
        raise ValueError(f"there is no folder {folder}")
    if not folder.is_dir():
        raise ValueError(f"{folder} is a file, not a folder of JPEGs")
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    if not files:
        raise ValueError(f"the folder {folder} is empty")
    if found := [path for path in files if path.suffix.lower() in ENDINGS]:
        return found
    raise ValueError(f"the folder {folder} has no file that ends in {' or '.join(ENDINGS)}")


def readable(jpegs: Sequence[Path]) -> list[Path]:
    """Return the JPEGs that Pillow decodes, and log a warning with the name of each other one."""
    found = []
    for path in jpegs:
        try:
            upright(open_picture(essentials(path.read_bytes()), ("JPEG",)))
        except Exception as error:  # Pillow raises nearly anything
            logger.warning("warning: %s is skipped: %s", path, error)
        else:
            found.append(path)
    return found
