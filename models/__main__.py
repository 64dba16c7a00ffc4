"""`python -m models` lists the architectures and what each costs; `python -m models vgg16` shows one layer by layer."""

from __future__ import annotations

import argparse
import csv
import difflib
import json
import os
import sys
from collections.abc import Collection, Sequence
from dataclasses import asdict
from math import inf, prod
from typing import Any

from tqdm import tqdm

from models.card import Architecture
from models.complexity import FLOAT_BYTES, Complexity, complexity
from models.zoo import ZOO

Row = dict[str, Any]


def describe(card: Architecture, cost: Complexity) -> Row:
    """A card and its cost, as plain data."""
    return {
        "name": card.name,
        "family": card.family,
        "year": card.paper.year,
        "paper": asdict(card.paper),
        "published": [asdict(result) for result in card.published],
        **asdict(cost),
    }


COLUMNS = (
    *("name", "family", "year", "input", "classes", "params", "macs", "activations", "param_bytes", "peak_bytes"),
    *("intensity", "data", "top1", "top5", "protocol", "source"),
)


def flat(row: Row) -> Row:
    """A description as one line: of the published accuracies the first, no layers."""
    result = row["published"][0] if row["published"] else {}
    values = row | result | {"input": times(row["input_shape"])}
    return {column: values.get(column) for column in COLUMNS}


def layer_rows(cost: Complexity) -> list[Row]:
    """A row a layer, the input first."""
    picture = {"name": "input", "output_shape": cost.input_shape, "output_bytes": FLOAT_BYTES * prod(cost.input_shape)}
    rows = [dict.fromkeys(asdict(cost.layers[0])) | picture, *map(asdict, cost.layers)]
    sizes = ("kernel", "output_shape", "receptive_field")
    return [row | {key: times(row[key]) for key in sizes if row[key]} for row in rows]


def times(shape: Sequence[int]) -> str:
    """Such as 3x224x224."""
    return "x".join(map(str, shape))


def table(rows: Sequence[Row], columns: Sequence[str]) -> str:
    """Aligned columns, numbers to the right."""
    cells = [list(columns)] + [[cell(column, row[column]) for column in columns] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    numeric = [any(isinstance(row[column], int | float) for row in rows) for column in columns]
    return "\n".join(
        "  ".join(
            text.rjust(width) if right else text.ljust(width)
            for text, width, right in zip(line, widths, numeric, strict=True)
        ).rstrip()
        for line in cells
    )


def cell(column: str, value: object) -> str:
    """A value as a table shows it."""
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) and column != "year" else str(value)


def totals(cost: Complexity) -> str:
    """The lines under a table of layers."""
    outputs = sum(layer.output_bytes for layer in cost.layers) + FLOAT_BYTES * prod(cost.input_shape)
    return "\n".join(
        [
            f"parameters            {cost.params:>15,}   {megabytes(cost.param_bytes)} in float32",
            f"multiply-accumulates  {cost.macs:>15,}",
            f"activations           {cost.activations:>15,}   outputs of convolutions and linear layers",
            f"outputs in all        {outputs // FLOAT_BYTES:>15,}   {megabytes(outputs)}, the input's too",
            f"peak memory           {cost.peak_bytes // FLOAT_BYTES:>15,}   {megabytes(cost.peak_bytes)} alive at once",
            f"arithmetic intensity  {cost.intensity:>15}   floating-point operations a byte, batch of one",
        ]
    )


def megabytes(size: int) -> str:
    """Of 10^6 bytes."""
    return f"{size / 1e6:.2f} MB"


def write_csv(rows: Sequence[Row], columns: Collection[str]) -> None:
    """Comma-separated values with a header."""
    writer = csv.DictWriter(sys.stdout, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)


LISTED = (
    *("name", "family", "year", "input", "params", "macs", "activations"),
    *("data", "top1", "top5", "protocol", "source"),
)
LAYERS = (
    *("name", "type", "kernel", "output_shape", "params", "macs", "activations"),
    *("param_bytes", "output_bytes", "receptive_field"),
)
SORTABLE = (*LISTED[:3], "params", "macs", "activations", "param_bytes", "peak_bytes", "intensity", "top1", "top5")


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    families = list(dict.fromkeys(card.family for card in ZOO.values()))
    parser = argparse.ArgumentParser("python -m models", description=__doc__)
    parser.add_argument("name", nargs="?", metavar="NAME", help="show this one layer by layer")
    parser.add_argument("--family", action="append", choices=families, help="only this one; may be repeated")
    parser.add_argument("--data", choices=("MNIST", "CIFAR-10", "ImageNet"), help="only those scored on it")
    parser.add_argument("--max-params", type=float, default=inf, metavar="N", help="such as 5e6")
    parser.add_argument("--max-macs", type=float, default=inf, metavar="N", help="such as 1e9")
    parser.add_argument("--sort", choices=SORTABLE, help="default: the order of the lecture")
    parser.add_argument("--descending", action="store_true", help="largest first")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="a list of objects; of one NAME an object, with its layers")
    form.add_argument("--csv", action="store_true", help="comma-separated values")
    parser.add_argument("--layers", action="store_true", help="with --json: every layer of each")
    return parser


def chosen(options: argparse.Namespace) -> list[Row]:
    """Descriptions of what passes the filters, sorted; what has nothing to sort by comes last."""
    cards = [
        card
        for card in ZOO.values()
        if (not options.family or card.family in options.family)
        and (not options.data or (card.published and card.published[0].data == options.data))
    ]
    rows = [describe(card, complexity(card)) for card in tqdm(cards, "counting", leave=False, disable=None)]
    rows = [row for row in rows if row["params"] <= options.max_params and row["macs"] <= options.max_macs]
    if options.sort:
        rows.sort(key=lambda row: flat(row)[options.sort] or 0, reverse=options.descending)
        rows.sort(key=lambda row: flat(row)[options.sort] is None)
    return rows


def show_list(options: argparse.Namespace) -> None:
    """All architectures that pass the filters."""
    rows = chosen(options)
    if options.json:
        if not options.layers:
            rows = [{key: value for key, value in row.items() if key != "layers"} for row in rows]
        lines = (json.dumps(row, separators=(",", ":")) for row in rows)
        print("[\n" + ",\n".join(lines) + "\n]")
    elif options.csv:
        write_csv(list(map(flat, rows)), COLUMNS)
    else:
        print(table(list(map(flat, rows)), LISTED))
        print(f"\n{len(rows)} architectures; costs at the paper's input, accuracies in percent, as published.")


def show_layers(card: Architecture, options: argparse.Namespace) -> None:
    """One architecture, layer by layer."""
    cost = complexity(card)
    if options.json:
        print(json.dumps(describe(card, cost), indent=2))
    elif options.csv:
        write_csv(layer_rows(cost), asdict(cost.layers[0]))
    else:
        print(table(layer_rows(cost), LAYERS) + "\n\n" + totals(cost))


def main(arguments: list[str]) -> None:
    """Parse, call one function, print."""
    command = parser()
    options = command.parse_args(arguments)
    if options.name and options.name not in ZOO:
        near = " or ".join(difflib.get_close_matches(options.name, ZOO))
        command.error(
            f"there is no {options.name!r}; " + (f"did you mean {near}?" if near else "see `python -m models`")
        )
    if options.name and (options.family or options.data or options.sort or options.layers):
        command.error("--family, --data, --sort and --layers are for the list, without a NAME")
    if options.layers and not options.json:
        command.error("--layers needs --json")
    try:
        show_layers(ZOO[options.name], options) if options.name else show_list(options)
        sys.stdout.flush()
    except BrokenPipeError:  # of `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    main(sys.argv[1:])
