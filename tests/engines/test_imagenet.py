"""Tests of the file of ImageNet's classes, against timm's and, where WordNet is installed, against WordNet's graph."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from engines.published.imagenet import CLASSES, read

NOUNS = Path("/usr/share/wordnet/data.noun")  # of Debian's package wordnet-base, WordNet 3.0
HEAD = re.compile(r"# ([a-z ]+):((?: n\d{8})+)")


@pytest.mark.parametrize(
    ("wnid", "superclass"),
    [
        ("n02123045", "cat"),  # tabby
        ("n02099601", "dog"),  # golden retriever
        ("n02504458", "mammal"),  # African elephant
        ("n02391049", "hoofed mammal"),  # zebra
        ("n01530575", "bird"),  # brambling
        ("n04285008", "vehicle"),  # sports car
        ("n04146614", "vehicle"),  # school bus
        ("n02690373", "aircraft"),  # airliner
        ("n03095699", "ship or boat"),  # container ship
        ("n03642806", "electronic device"),  # laptop
        ("n04120489", "clothing"),  # running shoe
        ("n07873807", "food"),  # pizza
        ("n09472597", "geological formation"),  # volcano
    ],
)
def test_known_classes_have_a_natural_superclass(wnid: str, superclass: str) -> None:
    known = read()
    assert known.superclass(known.wnids.index(wnid)) == superclass


def test_the_classes_are_imagenets_in_their_order() -> None:
    info = pytest.importorskip("timm.data.imagenet_info").ImageNetInfo("imagenet-1k")
    assert list(read().wnids) == [info.index_to_label_name(index) for index in range(1000)]
    assert list(read().wnids) == sorted(set(read().wnids))


def test_each_class_has_one_superclass_and_few_have_none() -> None:
    known = read()
    sizes = dict(zip(known.names, known.sums(np.ones(1000, np.float32)), strict=True))
    assert sizes.keys() == {name for name, _ in HEAD.findall(CLASSES.read_text())} | {"other"}
    assert sum(sizes.values()) == 1000
    assert sizes["dog"] == 118
    assert sizes["other"] < 30


@pytest.mark.skipif(not NOUNS.exists(), reason="WordNet is not installed: apt install wordnet-base")
def test_the_superclasses_follow_from_wordnet() -> None:
    chosen: dict[str, tuple[int, str]] = {}
    for rank, (name, synsets) in enumerate(HEAD.findall(CLASSES.read_text())):
        chosen |= dict.fromkeys(synsets.split(), (rank, name))
    above = {
        f"n{line[:8]}": [f"n{offset}" for offset in re.findall(r" @i? (\d{8}) n ", line.partition("|")[0])]
        for line in NOUNS.read_text("latin-1").splitlines()
        if not line.startswith("  ")
    }

    def nearest(wnid: str) -> str:
        level = {wnid}
        while level:
            if found := [chosen[synset] for synset in level if synset in chosen]:
                return min(found)[1]
            level = {synset for below in level for synset in above[below]}
        return "other"

    known = read()
    expected = {wnid: nearest(wnid) for wnid in known.wnids}
    assert {wnid: known.superclass(index) for index, wnid in enumerate(known.wnids)} == expected
    assert Counter(expected.values())["cat"] == 13
