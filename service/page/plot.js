// Drawing of accuracy against a cost, with the Pareto front: filled points are on it; squares, of another protocol, are
// left out of it.

import { el, fill, short, svg } from "./dom.js";

const LEFT = 46, RIGHT = 18, TOP = 18, BELOW = 44; // margins in pixels
const ACCURACIES = [10, 30, 50, 60, 65, 70, 75, 78, 80, 82, 85, 88, 90, 91, 92, 93, 94, 95, 96, 97, 98, 99, 99.5, 99.8];
const LEAST_ERROR = 0.02; // percent, for the scale's sake
const LETTER = 7.2; // pixels of a letter in a name
const TARGET = 13; // pixels around a point

/** Return the height on the scale of the error's logarithm, which keeps 76 and 81 % apart. */
const heightOf = (top1) => -Math.log10(Math.max(LEAST_ERROR, 100 - top1));

/** Return the points that no other comparable point beats at the same or less cost, cheapest first. */
function front(points) {
  const kept = [];
  for (const point of points.filter(({ comparable }) => comparable).sort((a, b) => a.x - b.x || b.y - a.y)) {
    if (!kept.length || point.y > kept.at(-1).y) kept.push(point);
  }
  return kept;
}

/**
 * Draw points { name, x, y, comparable, lit, words } into `container`. A point is a link, the arrow keys go
 * from one to the next, and `open` gets the point that is chosen. `limit` is a cost to draw as a line, or null.
 */
export function plot(container, points, { across, limit, open }) {
  if (!points.length) return fill(container, el("p.small", "Nothing can be drawn here yet."));
  const focused = container.contains(document.activeElement) && document.activeElement.dataset.name;
  const width = Math.max(300, container.clientWidth);
  const tall = width < 560 ? 360 : Math.min(500, Math.round(0.5 * width));
  const x = scale([...points.map((point) => Math.log10(point.x)), ...(limit ? [Math.log10(limit)] : [])], LEFT, width - RIGHT);
  const y = scale(points.map((point) => heightOf(point.y)), tall - BELOW, TOP);
  const placed = points
    .map((point) => ({ ...point, left: x(Math.log10(point.x)), top: y(heightOf(point.y)) }))
    .sort((one, other) => one.left - other.left);
  const best = front(placed);
  const readout = el("p.readout", { "aria-hidden": "true" }, "Point at a network, or go through them with the arrow keys.");
  const say = (point) => { readout.textContent = point.words; };
  const links = placed.map((point) => link(point, best.includes(point), say, open));
  const drawing = svg(
    "svg", { viewBox: `0 0 ${width} ${tall}`, role: "group", "aria-label": `Accuracy in percent against ${across}` },
    axes(x, y, width, tall, across),
    limit && vertical(x(Math.log10(limit)), tall),
    svg("path.front", { d: best.map(({ left, top }, place) => (place ? `H${left}V${top}` : `M${left},${top}`)).join("") }),
    links,
    svg("g.names", { "aria-hidden": "true" }, names(placed, best, width, tall)),
  );
  setUpKeys(links);
  fill(container, drawing, readout);
  links.find((node) => node.dataset.name === focused)?.focus();
}

function scale(values, from, to) {
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const margin = 0.06 * (high - low) || 0.1;
  const place = (value) => from + ((value - low + margin) / (high - low + 2 * margin)) * (to - from);
  /** Return the places of the values that lie inside the scale, at least `gap` pixels apart. */
  const ticks = (values, gap) => values.filter((value) => value >= low - margin && value <= high + margin)
    .reduce((kept, value) => (kept.length && Math.abs(place(value) - place(kept.at(-1))) < gap ? kept : [...kept, value]), []);
  return Object.assign(place, { ticks });
}

function axes(x, y, width, tall, across) {
  const costs = Array.from({ length: 20 }, (_, place) => place - 5).flatMap((power) => [1, 2, 5].map((digit) => Math.log10(digit) + power));
  const heights = new Map(ACCURACIES.map((value) => [heightOf(value), value]));
  return svg(
    "g.axes", { "aria-hidden": "true" },
    y.ticks([...heights.keys()], 22).map((height) => [
      svg("line", { x1: LEFT, x2: width - RIGHT, y1: y(height), y2: y(height) }),
      svg("text.end", { x: LEFT - 8, y: y(height) + 4 }, heights.get(height)),
    ]),
    x.ticks(costs, 52).map((cost) => svg("text.middle", { x: x(cost), y: tall - BELOW + 18 }, short(10 ** cost))),
    svg("text.end.title", { x: width - RIGHT, y: tall - 6 }, across),
    svg("text.title", { x: 4, y: 11 }, "%"),
  );
}

const vertical = (x, tall) => svg(
  "g.limit", { "aria-hidden": "true" },
  svg("line", { x1: x, x2: x, y1: TOP, y2: tall - BELOW }),
  svg("text.end", { x: x - 6, y: tall - BELOW - 6 }, "limit"),
);

function link(point, best, say, open) {
  const { left, top, name, words, comparable, lit } = point;
  const node = svg(
    `a.point${best ? ".best" : ""}${lit ? ".lit" : ""}`, { href: `#card/${name}`, "aria-label": words, "data-name": name },
    svg("circle.target", { cx: left, cy: top, r: TARGET }),
    comparable ? svg("circle", { cx: left, cy: top, r: lit ? 7 : 4.5 }) : svg("rect", { x: left - 4, y: top - 4, width: 8, height: 8 }),
  );
  node.onfocus = node.onpointerenter = () => say(point);
  node.onclick = (event) => {
    event.preventDefault();
    open(point);
  };
  return node;
}

/** Make one of the links reachable by Tab, and the others by the arrow keys from there. */
function setUpKeys(links) {
  links.forEach((node, place) => {
    node.setAttribute("tabindex", place ? -1 : 0);
    node.onkeydown = (event) => {
      const next = links[place + { ArrowRight: 1, ArrowLeft: -1 }[event.key]];
      if (!next) return;
      event.preventDefault();
      node.setAttribute("tabindex", -1);
      next.setAttribute("tabindex", 0);
      next.focus();
    };
  });
}

/** Return names beside points where there is room: first of asked networks, then of the front. */
function names(placed, best, width, tall) {
  const rank = (point) => (point.lit ? 0 : best.includes(point) ? 1 : 2);
  const taken = placed.map(({ left, top }) => ({ left: left - 5, right: left + 5, top: top - 5, bottom: top + 5 }));
  const free = (box) => box.left > LEFT && box.right < width && box.top > 0 && box.bottom < tall - BELOW
    && !taken.some((other) => box.left < other.right && other.left < box.right && box.top < other.bottom && other.top < box.bottom);
  return [...placed].sort((one, other) => rank(one) - rank(other) || other.y - one.y).map((point) => {
    const { left, top, name, lit } = point;
    const long = LETTER * name.length;
    const places = [[left - 9 - long, top], [left - long / 2, top - 14], [left - long / 2, top + 14]];
    places[best.includes(point) ? "push" : "unshift"]([left + 9, top]); // where the front's line is
    const box = places
      .map(([from, middle]) => ({ left: from, right: from + long, top: middle - 7, bottom: middle + 7 }))
      .find(free);
    if (!box) return null;
    taken.push(box);
    return svg(lit ? "text.lit" : "text", { x: box.left, y: box.top + 11 }, name);
  });
}
