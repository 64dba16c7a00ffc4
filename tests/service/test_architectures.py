"""Tests of the files of architectures: cards are read at the start, layers when requested."""

from __future__ import annotations

import gzip
import json
from dataclasses import asdict
from pathlib import Path

import pytest

from service import architectures
from service.architectures import CARDS, LAYERS, read_cards, read_layers, with_layers, write


@pytest.mark.parametrize("name", read_cards())
def test_the_layers_of_each_add_up_to_its_totals(name: str) -> None:
    cost = with_layers(read_cards()[name])
    assert sum(layer.params for layer in cost.layers) == cost.params
    assert sum(layer.macs for layer in cost.layers) == cost.macs


def test_an_unknown_name_has_no_layers() -> None:
    with pytest.raises(KeyError):
        read_layers("lenet")  # a prefix of a known name


def test_writing_again_writes_the_same_contents(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    described = [
        row | {"layers": [asdict(layer) for layer in read_layers(row["name"])]}
        for row in json.loads(CARDS.read_bytes())
    ]
    for file in (CARDS, LAYERS):
        monkeypatch.setattr(architectures, "CARDS" if file == CARDS else "LAYERS", tmp_path / file.name)
    write(json.dumps(described))
    assert (tmp_path / CARDS.name).read_bytes() == CARDS.read_bytes()
    assert gzip.decompress((tmp_path / LAYERS.name).read_bytes()) == gzip.decompress(LAYERS.read_bytes())
