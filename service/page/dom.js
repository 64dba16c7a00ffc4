// Elements and numbers. Every text becomes a text node, so that no name, label or error can become markup.

export const $ = (id) => document.getElementById(id);

/** Return a maker of elements: maker("p.small", { title: "…" }, "text", [other, elements]); attributes may be left out. */
const maker = (create) => (selector, ...children) => {
  const [name, ...classes] = selector.split(".");
  const node = create(name);
  if (classes.length) node.setAttribute("class", classes.join(" "));
  const attributes = children[0]?.constructor === Object ? children.shift() : {};
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== false && value != null) node.setAttribute(name, value === true ? "" : value);
  }
  return fill(node, children);
};

export const el = maker((name) => document.createElement(name));
export const svg = maker((name) => document.createElementNS("http://www.w3.org/2000/svg", name));

/** Replace the children of a node; what is null, undefined or false is left out. */
export function fill(node, ...children) {
  node.replaceChildren(...children.flat(Infinity).filter((child) => child != null && child !== false));
  return node;
}

/** Return a table that scrolls by itself; `columns` are functions of a row by title. */
export function table(caption, columns, rows) {
  const cells = rows.map((row) => Object.values(columns).map((cell) => cell(row) ?? ""));
  const numbers = Object.keys(columns).map((_, place) => cells.every((row) => /^([\d<>].*)?$/.test(row[place])));
  const line = (name, row) => el("tr", row.map((cell, place) => el(numbers[place] ? `${name}.number` : name, cell)));
  return el(
    "div.scroll", { tabindex: 0, role: "region", "aria-label": caption },
    el("table",
      el("caption.small", caption),
      el("thead", line("th", Object.keys(columns))),
      el("tbody", cells.map((row) => line("td", row)))),
  );
}

/** Return a function that runs once calls pause for some milliseconds. */
export function debounced(run, wait) {
  let timer = 0;
  return () => {
    clearTimeout(timer);
    timer = setTimeout(run, wait);
  };
}

const three = (value) =>
  value.toLocaleString("en", Math.abs(value) >= 100 ? { maximumFractionDigits: 0 } : { maximumSignificantDigits: 3 });

const scaled = (steps) => (value) => {
  const [factor, unit] = steps.find(([factor]) => value >= factor) ?? steps.at(-1);
  return three(value / factor) + unit;
};

export const amount = scaled([[1e9, " billion"], [1e6, " million"], [1, ""]]);
export const short = scaled([[1e9, "G"], [1e6, "M"], [1e3, "k"], [1, ""]]);
export const bytes = scaled([[1e9, " GB"], [1e6, " MB"], [1e3, " kB"], [1, " bytes"]]);
export const ms = (value) => `${three(value)} ms`;
export const percent = (share) => (share < 0.001 ? "< 0.1 %" : `${(100 * share).toFixed(1)} %`);
export const sentence = (text) => text && text[0].toUpperCase() + text.slice(1) + (/[.!?]$/.test(text) ? "" : ".");
export const sum = (items, value) => items.reduce((total, item) => total + value(item), 0);
export const best = (items, value) => items.reduce((one, other) => (value(other) > value(one) ? other : one));

/** Return architecture and data set of a tag, `architecture:dataset-checksum`. */
export function parts(tag) {
  const [architecture, version = ""] = tag.split(":");
  return { architecture, dataset: version.slice(0, version.lastIndexOf("-")) };
}
