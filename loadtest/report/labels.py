"""Places for names beside points, in pixels, such that no name covers a point or another name."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

FONT = 12  # pixels
ASCENT, LETTER = 0.5 * FONT, 0.58 * FONT  # half the height of a line; the mean width of a letter
RADIUS = 6  # of a point, with room around it

Align = Literal["left", "center", "right"]


@dataclass(frozen=True)
class LabelPlace:
    """Anchor of a name in pixels, to which the name is aligned; y grows downwards, and is the name's middle."""

    x: float
    y: float
    align: Align


@dataclass(frozen=True)
class PixelBox:
    """Pixels that a name or a point covers."""

    left: float
    top: float
    right: float
    bottom: float

    def within(self, width: float, height: float) -> bool:
        """Return True if the rectangle lies within a drawing, or up to 8 pixels above and below."""
        return self.left >= 0 and self.right <= width and self.top >= -8 and self.bottom <= height + 8

    def overlaps(self, other: PixelBox) -> bool:
        """Return True if the rectangles share an area."""
        return (
            self.left < other.right and other.left < self.right and self.top < other.bottom and other.top < self.bottom
        )


def place(
    names: Sequence[tuple[float, float, str]],
    points: Sequence[tuple[float, float]],
    paths: Sequence[Sequence[tuple[float, float]]],
    width: float,
    height: float,
) -> list[LabelPlace | None]:
    """Return a place for each name (x, y, text), the first names first; None where there is no room.

    A name stands near its point (x, y), covers none of `points` and no name before it, and lies within the drawing,
    or up to 8 pixels above and below. It crosses a line of `paths` only if there is no other place.
    """
    taken = [PixelBox(x - RADIUS, y - RADIUS, x + RADIUS, y + RADIUS) for x, y in points]
    crossed = [PixelBox(x - 1, y - 1, x + 1, y + 1) for path in paths for x, y in along(path)]
    places: list[LabelPlace | None] = []
    for x, y, text in names:
        free = [
            (where, box)
            for where in candidates(x, y)
            if (box := box_of(where, text)).within(width, height) and not any(map(box.overlaps, taken))
        ]
        clear = (found for found in free if not any(map(found[1].overlaps, crossed)))
        chosen = next(clear, free[0] if free else None)
        places.append(chosen[0] if chosen else None)
        taken += [chosen[1]] if chosen else []
    return places


def along(path: Sequence[tuple[float, float]]) -> Iterator[tuple[float, float]]:
    """Yield points at most 4 pixels apart along a line."""
    for (x, y), (next_x, next_y) in pairwise(path):
        steps = 1 + int(max(abs(next_x - x), abs(next_y - y)) / 4)
        for step in range(steps + 1):
            yield x + (next_x - x) * step / steps, y + (next_y - y) * step / steps


def candidates(x: float, y: float) -> Iterator[LabelPlace]:
    """Yield places around a point, the most legible first."""
    near, line = RADIUS + 2, RADIUS + ASCENT + 2
    yield LabelPlace(x + near, y, "left")
    yield LabelPlace(x - near, y, "right")
    for distance in (line, 1.7 * line):
        for side in (-1, 1):
            yield LabelPlace(x, y + side * distance, "center")
            yield LabelPlace(x + near / 2, y + side * distance, "left")
            yield LabelPlace(x - near / 2, y + side * distance, "right")


def box_of(place: LabelPlace, text: str) -> PixelBox:
    """Return the rectangle that a name covers at a place."""
    width = LETTER * len(text)
    left = place.x - {"left": 0, "center": 0.5, "right": 1}[place.align] * width
    return PixelBox(left, place.y - ASCENT - 1, left + width, place.y + ASCENT + 1)


def apart(positions: Sequence[float], distance: float) -> list[float]:
    """Return positions at least `distance` apart, in the order of the given ones, and near them."""
    order = sorted(range(len(positions)), key=positions.__getitem__)
    groups: list[tuple[list[int], float]] = []  # indexes, and the middle of their positions
    for index in order:
        group, middle = [index], positions[index]
        while groups and middle - groups[-1][1] < distance * (len(group) + len(groups[-1][0])) / 2:
            before, other = groups.pop()
            middle = (middle * len(group) + other * len(before)) / (len(group) + len(before))
            group = before + group
        groups.append((group, middle))
    spread = [0.0] * len(positions)
    for group, middle in groups:
        for place, index in enumerate(group):
            spread[index] = middle + distance * (place - (len(group) - 1) / 2)
    return spread
