"""`python -m loadtest.peers.labels NAME PRECISION PHOTO...`: which model a name means, and what it answers, as JSON.

In a process of its own, since the load generator's has no model.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from engines.published.manifest import ManifestError
from engines.runtimes.engine import EngineError
from engines.runtimes.machine import processor
from loadtest.peers.frames import Photos
from loadtest.peers.model import Model, find_tag


def main() -> None:
    """The tag, the machine, and each photo's label, of the engine asked alone."""
    name, precision, *paths = sys.argv[1:]
    try:
        tag = find_tag(name, precision)
        os.environ |= {"PEER_MODEL": tag, "PEER_PRECISION": precision}
        photos = Photos(Model(batches=[1]), [Path(path) for path in paths])
    except (EngineError, ManifestError) as error:
        sys.exit(f"error: {error}")
    print(json.dumps({"tag": tag, "processor": processor(), "labels": photos.labels}))


if __name__ == "__main__":
    main()
