"""Command `python -m models`: list architectures and their costs, show one layer by layer, or several side by side."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Collection, Sequence
from dataclasses import asdict
from math import inf, prod
from typing import Literal

from tqdm import tqdm

from models.card import Architecture
from models.closed_pipe import may_be_closed
from models.complexity import complexity, depth
from models.cost import FLOAT_BYTES, Complexity
from models.names import near_names, suggestion
from models.side_by_side import side_by_side
from models.tables import Row, aligned, markdown, megabytes, rounded, shape, write_csv
from models.zoo import ZOO

Format = Literal["table", "json", "csv", "markdown"]

COLUMNS = (
    *("name", "family", "year", "input", "classes", "params", "macs", "activations", "param_bytes", "peak_bytes"),
    *("intensity", "data", "top1", "top5", "protocol", "source"),
)
ONLY_IN_CSV = {"classes", "param_bytes", "peak_bytes", "intensity"}  # a terminal is not wide enough for all columns
SORTABLE = [column for column in COLUMNS if column not in {"input", "classes", "data", "protocol", "source"}]
LAYER_COLUMNS = (
    *("name", "type", "kernel", "output_shape", "params", "macs", "activations"),
    *("param_bytes", "output_bytes", "receptive_field"),
)


def describe(card: Architecture, cost: Complexity) -> Row:
    """Return a card and its cost as plain data, the layers included."""
    return {
        "name": card.name,
        "family": card.family,
        "year": card.paper.year,
        "paper": asdict(card.paper),
        "published": [asdict(result) for result in card.published],
        "importable": card.weights and card.weights.data,
        **asdict(cost),
    }


def select(families: Collection[str] | None, data: str | None, max_params: float, max_macs: float) -> list[Row]:
    """Return descriptions of the architectures that pass all filters, in the order of the lecture."""
    cards = [
        card
        for card in ZOO.values()
        if (not families or card.family in families)
        and (not data or (card.published and card.published[0].data == data))
    ]
    rows = [describe(card, complexity(card)) for card in tqdm(cards, "counting", leave=False, disable=None)]
    return [row for row in rows if row["params"] <= max_params and row["macs"] <= max_macs]


def flat(row: Row) -> Row:
    """Return a description as one row of COLUMNS: the first of the published accuracies, and no layers."""
    result = row["published"][0] if row["published"] else {}
    values = row | result | {"input": shape(row["input_shape"])}
    return {column: values.get(column) for column in COLUMNS}


def ordered(rows: Sequence[Row], column: str, *, descending: bool) -> list[Row]:
    """Return descriptions sorted by a column; descriptions without a value come last in either direction."""
    by_value = sorted(rows, key=lambda row: flat(row)[column] or 0, reverse=descending)
    return sorted(by_value, key=lambda row: flat(row)[column] is None)


def show_list(rows: Sequence[Row], form: Format, *, layers: bool) -> None:
    """Print a row per architecture; `layers` adds every layer to the JSON."""
    lines = list(map(flat, rows))
    if form == "json":
        print_json(rows, layers=layers)
    elif form == "csv":
        write_csv(lines, COLUMNS)
    elif form == "markdown":
        print(markdown(list(map(brief, lines))))
    else:
        print(aligned(lines, [column for column in COLUMNS if column not in ONLY_IN_CSV]))
        print(f"\n{len(rows)} architectures; costs at the paper's input, accuracies in percent, as published.")


def print_json(rows: Sequence[Row], *, layers: bool) -> None:
    """Print descriptions as a list of objects, a line each, with or without their layers."""
    objects = rows if layers else [{key: value for key, value in row.items() if key != "layers"} for row in rows]
    print("[\n" + ",\n".join(json.dumps(row, separators=(",", ":")) for row in objects) + "\n]")


def show_side_by_side(cards: Sequence[Architecture], form: Format) -> None:
    """Print several architectures side by side: their totals and depths, no layers."""
    rows = [describe(card, complexity(card)) | {"depth": depth(card)} for card in cards]
    if form == "json":
        print_json(rows, layers=False)
    elif form == "csv":
        write_csv([flat(row) | {"depth": row["depth"]} for row in rows], [*COLUMNS, "depth"])
    elif form == "markdown":
        print(markdown(side_by_side(rows)))
    else:
        lines = side_by_side(rows)
        print(aligned(lines, list(lines[0])))
        print("\nCosts of one image at the paper's input. Accuracies are published, and not measured here.")


def brief(row: Row) -> Row:
    """Return a row of COLUMNS as a row of the Markdown table."""
    accuracy = "-" if row["top1"] is None else f"{row['top1']:.2f} % ({row['data']})"
    return {
        "Name": f"`{row['name']}`",
        "Family": row["family"],
        "Year": row["year"],
        "Parameters": rounded(row["params"]),
        "MACs": rounded(row["macs"]),
        "Published top-1": accuracy,
    }


def show_layers(card: Architecture, form: Format) -> None:
    """Print one architecture layer by layer, as a table, CSV or JSON."""
    cost = complexity(card)
    if form == "json":
        print(json.dumps(describe(card, cost), indent=2))
    elif form == "csv":
        write_csv(layer_rows(cost), asdict(cost.layers[0]))
    else:
        print(aligned(layer_rows(cost), LAYER_COLUMNS) + "\n\n" + totals(cost))


def layer_rows(cost: Complexity) -> list[Row]:
    """Return a row per layer, after a first row for the input picture."""
    picture = {"name": "input", "output_shape": cost.input_shape, "output_bytes": FLOAT_BYTES * prod(cost.input_shape)}
    rows = [dict.fromkeys(asdict(cost.layers[0])) | picture, *map(asdict, cost.layers)]
    sizes = ("kernel", "output_shape", "receptive_field")
    return [row | {key: shape(row[key]) for key in sizes if row[key]} for row in rows]


def totals(cost: Complexity) -> str:
    """Return the totals that follow a table of layers."""
    outputs = sum(layer.output_bytes for layer in cost.layers) + FLOAT_BYTES * prod(cost.input_shape)
    return "\n".join(
        [
            f"parameters            {cost.params:>15,}   {megabytes(cost.param_bytes)} in float32",
            f"multiply-accumulates  {cost.macs:>15,}",
            f"activations           {cost.activations:>15,}   outputs of convolutions and linear layers",
            f"outputs in all        {outputs // FLOAT_BYTES:>15,}   {megabytes(outputs)}, with the input",
            f"peak memory           {cost.peak_bytes // FLOAT_BYTES:>15,}   {megabytes(cost.peak_bytes)} alive at once",
            f"arithmetic intensity  {cost.intensity:>15}   floating-point operations per byte, batch of one",
        ]
    )


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command's options."""
    families = list(dict.fromkeys(card.family for card in ZOO.values()))
    parser = argparse.ArgumentParser("python -m models", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="one: show layer by layer; several: side by side")
    parser.add_argument("--family", action="append", choices=families, help="list this family; may be repeated")
    parser.add_argument("--data", choices=("MNIST", "CIFAR-10", "ImageNet"), help="list results on this data set")
    parser.add_argument("--max-params", type=float, default=inf, metavar="N", help="most parameters, such as 5e6")
    parser.add_argument("--max-macs", type=float, default=inf, metavar="N", help="most MACs, such as 1e9")
    parser.add_argument("--sort", choices=SORTABLE, help="sort by this column (default: the order of the lecture)")
    parser.add_argument("--descending", action="store_true", help="sort the largest first")
    form = parser.add_mutually_exclusive_group()
    form.set_defaults(form="table")
    for name, text in (
        ("json", "print a list of objects, or for one NAME an object with its layers"),
        ("csv", "print comma-separated values"),
        ("markdown", "print the list, or several NAMEs, as a Markdown table"),
    ):
        form.add_argument(f"--{name}", dest="form", action="store_const", const=name, help=text)
    parser.add_argument("--layers", action="store_true", help="with --json: add every layer of each architecture")
    return parser


def main(arguments: list[str]) -> None:
    """Run the command; print an error and exit with status 2 if the options do not fit together."""
    command = parser()
    options = command.parse_args(arguments)
    names, form, layers = list(dict.fromkeys(options.names)), options.form, options.layers
    for name in names:
        if name not in ZOO:
            command.error(f"there is no {name!r}; " + (suggestion(near_names(name, ZOO)) or "see `python -m models`"))
    filters = options.family or options.data or options.sort or layers
    if names and (filters or (form == "markdown" and len(names) == 1)):
        command.error("--family, --data, --sort, --layers and --markdown are for the list, without a NAME")
    if layers and form != "json":
        command.error("--layers needs --json")
    if len(names) == 1:
        show_layers(ZOO[names[0]], form)
    elif names:
        show_side_by_side([ZOO[name] for name in names], form)
    else:
        rows = select(options.family, options.data, options.max_params, options.max_macs)
        rows = ordered(rows, options.sort, descending=options.descending) if options.sort else rows
        show_list(rows, form, layers=layers)


if __name__ == "__main__":
    with may_be_closed():
        main(sys.argv[1:])
