"""`python -m models` lists the architectures; `--json` gives their cards and costs, layer by layer."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict

from models.complexity import complexity
from models.zoo import ZOO


def cards() -> list[dict[str, object]]:
    """What service/architectures.json holds: each card, and its cost at the paper's input."""
    return [
        {
            "name": card.name,
            "family": card.family,
            "paper": asdict(card.paper),
            "published": [asdict(result) for result in card.published],
            "complexity": asdict(complexity(card)),
        }
        for card in ZOO.values()
    ]


def as_json() -> str:
    """The cards, a line each."""
    return "[\n" + ",\n".join(json.dumps(card) for card in cards()) + "\n]"


def table() -> str:
    """A line an architecture."""
    lines = [f"{'name':<20} {'year'} {'input':>11} {'parameters':>13} {'MACs':>15} {'activations':>13}"]
    for card in ZOO.values():
        cost = complexity(card)
        shape = "x".join(map(str, card.input_shape))
        lines.append(
            f"{card.name:<20} {card.paper.year} {shape:>11} {cost.params:>13,} {cost.macs:>15,} {cost.activations:>13,}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser("python -m models", description=__doc__)
    parser.add_argument("--json", action="store_true", help="as JSON, with the cost of each layer")
    print(as_json() if parser.parse_args().json else table())
