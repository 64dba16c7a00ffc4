"""Command line: `python -m loadtest scale` and `python -m loadtest simulate`."""

from __future__ import annotations

import argparse
from pathlib import Path

from loadtest import markdown
from loadtest.landscape.rows import read_landscape
from loadtest.scale import replicas

LANDSCAPE = Path(__file__).parents[2] / "docs/landscape.jsonl"


def scale_command(arguments: list[str]) -> None:
    """Reckon how many replicas a million photos an hour, and a thousand a second, need of each network."""
    options = parser("scale", scale_command.__doc__).parse_args(arguments)
    print(replicas_table(options.landscape))


def replicas_table(landscape: Path) -> str:
    """Return the table of replicas. Raises ScenarioError if there is no landscape."""
    columns = replicas.headings()
    lines = map(replicas.cells, replicas.needs(read_landscape(landscape)))
    return markdown.table(columns, lines, columns[1:])


def simulate_command(arguments: list[str]) -> None:
    """Simulate the scheduler on many devices with many models, in virtual time, at loads below and above capacity."""
    from loadtest.scale import outcomes
    from loadtest.scale.arrivals import lay_out

    options = parser("simulate", simulate_command.__doc__)
    options.add_argument("--models", type=int, default=1000, help="default: %(default)s")
    options.add_argument("--devices", type=int, default=100, help="default: %(default)s")
    options.add_argument(
        "--times", type=float, default=10, help="as fast as the machine measured, each (default: %(default)s)"
    )
    options.add_argument("--seconds", type=int, default=6, help="of each scenario (default: %(default)s)")
    chosen = options.parse_args(arguments)
    networks = replicas.models(read_landscape(chosen.landscape), chosen.times)
    layout = lay_out(networks, chosen.models, chosen.devices)
    print(markdown.head(outcomes.HEADINGS, outcomes.HEADINGS[1:]), flush=True)
    for scenario in outcomes.scenarios():
        print(markdown.line(outcomes.cells(scenario, outcomes.play(layout, scenario, chosen.seconds))), flush=True)


def parser(command: str, description: str | None) -> argparse.ArgumentParser:
    """Return a parser with the option that both commands have."""
    made = argparse.ArgumentParser(f"python -m loadtest {command}", description=description)
    made.add_argument("--landscape", type=Path, default=LANDSCAPE, help="measured networks (default: %(default)s)")
    return made
