"""Labels of photos: `python -m loadtest.peers.labels NAME PRECISION PHOTO...` prints JSON.

A process of its own, because the process of the load generator loads no model.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from engines.published.manifest import ManifestError
from engines.runtimes.engine import EngineError
from engines.runtimes.machine import processor
from loadtest.peers.model import DEVICE, PeerModel, PeerPhotos, find_tag


def main() -> None:
    """Print the model's tag, the machine's name, and the label of each photo alone."""
    name, precision, *paths = sys.argv[1:]
    try:
        tag = find_tag(name, precision)
        os.environ |= {"PEER_MODEL": tag, "PEER_PRECISION": precision}
        photos = PeerPhotos(PeerModel(batches=[1]), [Path(path) for path in paths])
    except (EngineError, ManifestError) as error:
        sys.exit(f"error: {error}")
    machine = processor()
    if DEVICE:
        from loadtest.peers import torch_network

        machine = torch_network.machine(DEVICE)
    print(json.dumps({"tag": tag, "processor": machine, "labels": photos.labels}))


if __name__ == "__main__":
    main()
