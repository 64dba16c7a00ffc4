"""Places for names around points, in pixels: near their points, over no other name, point or line.

A name may stand in any of a hundred places around its point, or nowhere. Each name in turn takes the place that costs
least beside the others' places, until none moves. Then, many times, some neighbours are taken away and all settle anew;
the cheapest end is kept.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

Align = Literal["left", "center", "right"]
Point = tuple[float, float]
Array = Any  # of numpy

# Widths of Helvetica, and of Arial and Liberation Sans, which are as wide, in thousandths of the font's size.
WIDTHS = dict.fromkeys("ijl", 222) | dict.fromkeys("ft ,.", 278) | dict.fromkeys("cksvxyz", 500) | {"r": 333}
WIDTHS |= {"m": 833, "w": 722, "%": 889}
WIDTH = 556  # of digits and other letters
DISTANCES = (6, 9, 13, 18, 24, 31, 39, 48, 58, 69, 82, 97)  # pixels, from a point to its name
DIRECTIONS = 16
CHEAPEST = 130  # places of a name that are considered
TRIALS = 150
TAKEN_AWAY = 10  # neighbouring names in a trial, at most
POINT = 5.5  # pixels around the middle of a point
MARGIN = 1.5  # pixels around a name
LEADER = 12.0  # pixels from a point to its name, from which on a line joins both
SAMPLES = np.linspace(0.2, 1, 7)  # of a leader, from its point to its name

COVERED_NAME = 1e6
AMBIGUOUS = 5.0  # each other point beside a name
COVERED_LINE = 12.0  # each of the given points on lines
CROSSED_NAME, CROSSED_POINT, CROSSED_LINE, CROSSED_LEADER = 150.0, 60.0, 10.0, 60.0  # by samples of a leader
LEFT_OUT = 600.0  # a name; FIRST is what the first of the names costs more
FIRST = 600.0


@dataclass(frozen=True)
class PlacedName:
    """Name at a place: `x`, `y` is the text's anchor, its middle in height; `leader` is the line's end, or None."""

    x: float
    y: float
    align: Align
    leader: Point | None


@dataclass(frozen=True)
class Surroundings:
    """Drawing in which names find their places: `points` to stay off, points of `lines` to rather stay off.

    `size` is the width and the height, y downwards; `reach` is the largest distance from a point to its name.
    """

    points: Sequence[Point]
    lines: Sequence[Point]
    size: Point
    font: float
    reach: float = math.inf


def text_width(text: str, font: float) -> float:
    """Return the width of a text in pixels."""
    return sum(WIDTHS.get(letter, WIDTH) for letter in text) * font / 1000


def place_names(names: Sequence[tuple[Point, str]], around: Surroundings) -> list[PlacedName | None]:
    """Return a place for each name (point, text), None where there is no room. The first names are left out last."""
    if not names:
        return []
    choices = [Choices(point, text, around) for point, text in names]
    ends = np.cumsum([len(choice.alone) for choice in choices])
    ranges = [np.arange(end - len(choice.alone), end) for choice, end in zip(choices, ends, strict=True)]
    left_out = LEFT_OUT + FIRST * 0.5 ** np.arange(len(names))
    for choice, cost in zip(choices, left_out, strict=True):
        choice.alone[0] = cost
    alone, between = np.concatenate([choice.alone for choice in choices]), conflicts(choices)
    chance = np.random.default_rng(0)
    cost, best = settle(np.array([own[0] for own in ranges]), ranges, alone, between, chance)
    points = np.array([point for point, _ in names])
    for _ in range(TRIALS):
        trial = best.copy()
        steps = np.hypot(*(points - points[chance.integers(len(names))]).T)
        for name in np.argsort(steps)[: chance.integers(2, TAKEN_AWAY)]:
            trial[name] = ranges[name][0]
        trial_cost, trial = settle(trial, ranges, alone, between, chance)
        if trial_cost < cost:
            cost, best = trial_cost, trial
    return [choice.placed(int(place - own[0])) for choice, own, place in zip(choices, ranges, best, strict=True)]


def settle(
    standing: Array, ranges: Sequence[Array], alone: Array, between: Array, chance: np.random.Generator
) -> tuple[float, Array]:
    """Move names from where these stand until none can lower the cost by moving alone; return the cost and places.

    A place is an index of `alone`; `ranges` are the places of each name.
    """
    moved = True
    while moved:
        moved = False
        for name in chance.permutation(len(ranges)):
            own = ranges[name]
            costs = alone[own] + between[np.ix_(own, standing)].sum(axis=1) - between[own, standing[name]]
            best = own[int(np.argmin(costs))]
            if costs[best - own[0]] < costs[standing[name] - own[0]]:
                standing[name], moved = best, True
    return float(alone[standing].sum() + between[np.ix_(standing, standing)].sum() / 2), standing


class Choices:
    """Places of one name: boxes (left, top, right, bottom), samples of leaders, costs; the first place is nowhere."""

    def __init__(self, point: Point, text: str, around: Surroundings) -> None:
        self.point = np.array(point)
        self.half = np.array([text_width(text, around.font) / 2, around.font * 0.43])
        angles = np.arange(DIRECTIONS) * 2 * np.pi / DIRECTIONS
        distances = [distance for distance in DISTANCES if distance <= around.reach]
        away = np.repeat(distances, DIRECTIONS).astype(float)
        towards = np.tile(np.stack([np.cos(angles), np.sin(angles)], axis=1), (len(distances), 1))
        # The text lies beside, above or below the circle of this radius around the point, or meets it at a corner.
        middles = self.point + towards * away[:, None] + np.clip(towards * 4, -1, 1) * self.half
        boxes = np.hstack([middles - self.half - MARGIN, middles + self.half + MARGIN])
        points = np.array(around.points).reshape(-1, 2)
        left, top, right, bottom = boxes.T
        free = (left > 0) & (top > 0) & (right < around.size[0]) & (bottom < around.size[1])
        free &= ~inside(points, boxes, POINT - MARGIN).any(axis=1)
        away, middles, boxes = away[free], middles[free], boxes[free]
        ends = np.clip(self.point, middles - self.half, middles + self.half)
        samples = self.point + (ends - self.point)[:, None, :] * SAMPLES[None, :, None]
        samples[away < LEADER] = np.nan  # too short to be drawn
        others = points[np.hypot(*(points - self.point).T) > 1]
        lines = np.array(around.lines).reshape(-1, 2)
        costs = (
            away
            + 2.0 * (middles[:, 0] < self.point[0])  # names are read from the left
            + AMBIGUOUS * inside(others, boxes, 2 * POINT).sum(axis=1)
            + COVERED_LINE * inside(lines, boxes, 0).sum(axis=1)
            + CROSSED_POINT * near(samples, others, POINT - 1)
            + CROSSED_LINE * near(samples, lines, 4)
        )
        cheapest = np.argsort(costs, kind="stable")[:CHEAPEST]
        self.alone = np.concatenate([[0.0], costs[cheapest]])
        self.away = np.concatenate([[0.0], away[cheapest]])
        self.middles, self.ends, self.boxes, self.samples = (
            np.concatenate([np.full((1, *values.shape[1:]), np.nan), values[cheapest]])
            for values in (middles, ends, boxes, samples)
        )

    def placed(self, place: int) -> PlacedName | None:
        """Return the name at one of its places, or None for the first."""
        if place == 0:
            return None
        x, y = map(float, self.middles[place])
        end_x, end_y = map(float, self.ends[place])
        align: Align = "center" if abs(end_x - x) < 0.98 * self.half[0] else "left" if end_x < x else "right"
        shift = {"left": -self.half[0], "center": 0.0, "right": self.half[0]}[align]
        return PlacedName(x + float(shift), y, align, (end_x, end_y) if self.away[place] >= LEADER else None)


def conflicts(choices: Sequence[Choices]) -> Array:
    """Return what each two places of all names cost beside each other: names and leaders that cover each other."""
    boxes = np.concatenate([choice.boxes for choice in choices])
    samples = np.concatenate([choice.samples for choice in choices])
    between = COVERED_NAME * overlapping(boxes).astype(np.float32)
    drawn = np.flatnonzero(~np.isnan(samples[:, 0, 0]))
    for place in drawn:
        between[place] += CROSSED_NAME * inside(samples[place], boxes, 0).sum(axis=1)
    between += between.T
    leaders = samples[drawn].astype(np.float32)
    between[np.ix_(drawn, drawn)] += CROSSED_LEADER * crossing(leaders[:, 0], leaders[:, -1])
    np.fill_diagonal(between, 0)  # a place is not in its own way
    return between


def inside(points: Array, boxes: Array, margin: float) -> Array:
    """Return for each box which points lie in the box, or within `margin` of the box."""
    x, y = points[None, :, 0], points[None, :, 1]
    left, top, right, bottom = (boxes[:, side, None] for side in range(4))
    return (x > left - margin) & (x < right + margin) & (y > top - margin) & (y < bottom + margin)


def near(samples: Array, points: Array, distance: float) -> Array:
    """Return for each leader how many pairs of its samples and points are nearer than a distance."""
    steps = np.hypot(*np.moveaxis(samples[:, :, None, :] - points, -1, 0))
    return (steps < distance).sum(axis=(1, 2))


def overlapping(boxes: Array) -> Array:
    """Return for each two boxes if they share an area."""
    left, top, right, bottom = boxes.T
    across = (left[:, None] < right) & (left < right[:, None])
    return across & (top[:, None] < bottom) & (top < bottom[:, None])


def crossing(starts: Array, ends: Array) -> Array:
    """Return for each two lines, from a start to an end, if they cross."""
    along = ends - starts
    # The side of each line on which the start and the end of each other line lie, by the sign.
    from_start, from_end = (
        along[:, 0, None] * (points[:, 1] - starts[:, 1, None])
        - along[:, 1, None] * (points[:, 0] - starts[:, 0, None])
        for points in (starts, ends)
    )
    apart = from_start * from_end < 0
    return apart & apart.T
