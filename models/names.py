"""Names of architectures near a misspelt one, without torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import SequenceMatcher

MOST = 3  # names that are suggested
LONGEST = 50  # characters: no name is longer, and a comparison takes time
SIMILAR = 0.7  # least similarity of a suggested name, 0 to 1


def near_names(name: str, known: Iterable[str]) -> list[str]:
    """Return up to three known names near `name`, the nearest first.

    Names that differ in case, punctuation or order of letters only come first, then names of which `name` is the
    beginning or another part, shortest first, then similar ones. A name is similar if its beginning is, so that
    `rasnet20` finds `resnet20_cifar`.
    """
    wanted = plain(name)
    if not wanted or len(name) > LONGEST:
        return []
    ranked = []
    for candidate in known:
        text = plain(candidate)
        if sorted(text) == sorted(wanted):
            rank = (0, 0.0)
        elif text.startswith(wanted):
            rank = (1, len(text))
        elif wanted in text or text in wanted:
            rank = (2, abs(len(text) - len(wanted)))
        elif (similarity := similar(wanted, text)) >= SIMILAR:
            rank = (3, -similarity)
        else:
            continue
        ranked.append((*rank, candidate))
    return [candidate for *_, candidate in sorted(ranked)[:MOST]]


def suggestion(near: Sequence[str]) -> str:
    """Return the question whether one of the names near a misspelt one was meant; empty if there is none."""
    return f"did you mean {' or '.join(near)}?" if near else ""


def plain(name: str) -> str:
    """Return the letters and digits of a name, in lower case."""
    return "".join(character for character in name.lower() if character.isalnum())


def similar(wanted: str, text: str) -> float:
    """Return the similarity of two names, 0 to 1, or of `wanted` and the beginning of `text` if that is more."""
    matcher = SequenceMatcher(b=wanted, autojunk=False)
    ratios = []
    for part in (text, text[: len(wanted)]):
        matcher.set_seq1(part)
        ratios.append(matcher.ratio())
    return max(ratios)
