"""Pictures of drawings as PNG files."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import vl_convert
from PIL import Image

SCALE = 2  # pixels of the picture for each of the drawing's, for screens of high resolution


def write_png(spec: dict[str, Any], path: Path) -> None:
    """Write a Vega-Lite drawing as a picture without transparency, compressed as far as PNG goes."""
    png = vl_convert.vegalite_to_png(json.dumps(spec), scale=SCALE)
    Image.open(io.BytesIO(png)).convert("RGB").save(path, optimize=True)
