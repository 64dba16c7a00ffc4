"""Cards, costs and layers of all architectures, read from the files that `make architectures` writes.

`python -m models --json --layers | python -m service.architectures` writes both files. The cards with their total costs
are read at each start. The layers are a hundred times as many bytes and are read when a client asks for them.
"""

from __future__ import annotations

import gzip
import json
import sys
from dataclasses import fields
from functools import cache
from pathlib import Path

from pydantic import BaseModel, TypeAdapter

from models.cost import Complexity, LayerCost, Totals
from service.schema import ArchitectureCard

CARDS = Path(__file__).with_name("architectures.json")  # a list, one card a line
LAYERS = Path(__file__).with_name("layers.jsonl.gz")  # one architecture a line, in the order of the cards


class ArchitectureLayers(BaseModel):
    """Cost of each layer of one architecture: a line of `layers.jsonl.gz`."""

    name: str
    layers: tuple[LayerCost, ...]


def read_cards() -> dict[str, ArchitectureCard]:
    """Return the card and the total costs of every architecture by name, in the order of the lecture."""
    cards = TypeAdapter(list[ArchitectureCard]).validate_json(CARDS.read_bytes())
    return {card.name: card for card in cards}


@cache
def read_layers(name: str) -> tuple[LayerCost, ...]:
    """Return the cost of each layer of one architecture. Raises KeyError for an unknown name."""
    start = f'{{"name":{json.dumps(name)},'.encode()
    with gzip.open(LAYERS) as lines:
        for line in lines:
            if line.startswith(start):  # other lines are not parsed
                return ArchitectureLayers.model_validate_json(line).layers
    raise KeyError(name)


def with_layers(card: ArchitectureCard) -> Complexity:
    """Return the cost of an architecture at the paper's input, layer by layer."""
    totals = {field.name: getattr(card, field.name) for field in fields(Totals)}
    return Complexity(**totals, layers=read_layers(card.name))


def write(described: str) -> None:
    """Write both files from the output of `python -m models --json --layers`."""
    rows = json.loads(described)
    layers = [compact({"name": row["name"], "layers": row.pop("layers")}) + "\n" for row in rows]
    CARDS.write_text("[\n" + ",\n".join(map(compact, rows)) + "\n]\n")
    # No time is stored, so that the same Python writes the same bytes again.
    LAYERS.write_bytes(gzip.compress("".join(layers).encode(), mtime=0))


def compact(value: object) -> str:
    """Return a value as JSON on one line, without spaces."""
    return json.dumps(value, separators=(",", ":"))


if __name__ == "__main__":
    write(sys.stdin.read())
