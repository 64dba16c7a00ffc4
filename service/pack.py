"""Command `python -m service.pack [NAME...]`: build a Bento with the named published models, or with all."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import bentoml
import yaml

from service.catalog import Catalog
from service.errors import Problem
from service.settings import read_settings

ROOT = Path(__file__).parents[1]


def pack(names: list[str]) -> str:
    """Build the Bento and return its tag. Raises Problem if a name has no published model."""
    catalog = Catalog(read_settings())
    tags = [catalog.find(name).manifest.tag for name in names] or list(catalog.models)
    # Full tags, since BentoML takes a name without version as its own "latest", and a missing tag fails the build.
    content = yaml.safe_load((ROOT / "bentofile.yaml").read_text()) | {"models": tags}
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        yaml.safe_dump(content, file)
        file.flush()
        bento = bentoml.bentos.build_bentofile(file.name, build_ctx=str(ROOT))
    return str(bento.tag)


if __name__ == "__main__":
    try:
        print(pack(sys.argv[1:]))
    except Problem as problem:
        sys.exit(f"error: {problem.detail}")
