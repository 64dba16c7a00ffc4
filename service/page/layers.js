// Layers of a network as a picture along the depth.

import { amount, best, bytes, el, fill, sentence, sum, svg, table } from "./dom.js";

const ROW = 74, BAR = 50, TOP = 18; // height of a row of the drawing, of its bars, and of its heading
const MEASURES = [
  ["parameters", (layer) => layer.params, amount],
  ["multiply-accumulates", (layer) => layer.macs, amount],
  ["memory of the output", (layer) => layer.output_bytes, bytes],
];
const KINDS = ["convolution", "linear", "other"];

const kindOf = ({ type }) => (type.startsWith("Conv") ? "convolution" : /Linear|RBF/.test(type) ? "linear" : "other");
const sizes = (numbers) => numbers.join(" x ");
const typeOf = ({ type, kernel }) => `${type}${kernel ? ` ${sizes(kernel)}` : ""}`;

/** Return the picture, `width` pixels wide, of a network's layers, a slider through them, and their table. */
export function layerPicture({ layers, input_shape: [, ...edges] }, width) {
  const step = width / layers.length;
  const lines = glance(layers);
  const cursor = svg("line.cursor", { y1: 0, y2: 4 * ROW });
  const drawing = svg(
    "svg", { viewBox: `0 0 ${width} ${4 * ROW}`, role: "img", "aria-label": lines.join(" ") },
    MEASURES.map((measure, row) => bars(layers, step, measure, row * ROW)), fields(layers, step, Math.max(...edges)), cursor,
  );
  const words = el("output.readout", { for: "depth" });
  const slider = el("input", { id: "depth", type: "range", min: 0, max: layers.length - 1, value: 0, "aria-label": "Layer" });
  const go = (place) => {
    slider.value = place;
    words.textContent = described(layers, place);
    slider.setAttribute("aria-valuetext", words.textContent);
    for (const end of ["x1", "x2"]) cursor.setAttribute(end, (place + 0.5) * step);
  };
  slider.oninput = () => go(Number(slider.value));
  drawing.onpointermove = (event) => {
    const box = drawing.getBoundingClientRect();
    go(Math.max(0, Math.min(layers.length - 1, Math.floor(((event.clientX - box.left) / box.width) * layers.length))));
  };
  go(0);
  return [
    el("h4", "Along the depth, from the picture to the classes"),
    el("ul.glance", lines.map((line) => el("li", line))),
    el("p.small", KINDS.map((kind) => [el(`span.key.${kind}`, kind), " "])),
    el("div.layers", drawing), slider, words, behind(layers),
  ];
}

function bars(layers, step, [title, value, words], top) {
  const most = Math.max(...layers.map(value), 1);
  const bottom = top + TOP + BAR;
  const path = (kind) => layers.map((layer, place) => (kindOf(layer) === kind && value(layer)
    ? `M${(place * step).toFixed(2)},${bottom}v${(-BAR * value(layer) / most).toFixed(2)}h${Math.max(step * 0.9, 0.6).toFixed(2)}V${bottom}z` : "")).join("");
  return [
    heading(top, `${title}: ${words(sum(layers, value))}, at most ${words(most)}`),
    KINDS.map((kind) => svg(`path.${kind}`, { d: path(kind) })),
  ];
}

/** Return the receptive field as a line, beside the edge of the picture. */
function fields(layers, step, edge) {
  const seen = layers.map((layer) => Math.max(...layer.receptive_field));
  const most = Math.max(...seen, edge);
  const y = (size) => (3 * ROW + TOP + BAR * (1 - size / most)).toFixed(2);
  return [
    heading(3 * ROW, `receptive field: ${Math.max(...seen)} pixels; dashed: the picture, ${edge}`),
    svg("line.edge", { x1: 0, x2: "100%", y1: y(edge), y2: y(edge) }),
    svg("path.field", { d: seen.map((size, place) => `${place ? "L" : "M"}${((place + 0.5) * step).toFixed(2)},${y(size)}`).join("") }),
  ];
}

const heading = (top, text) => [
  svg("text", { x: 0, y: top + 12 }, text),
  svg("line.base", { x1: 0, x2: "100%", y1: top + TOP + BAR, y2: top + TOP + BAR }),
];

/** Return where most of each measure is. */
function glance(layers) {
  const early = layers.slice(0, Math.ceil(layers.length / 3));
  const linear = layers.filter((layer) => kindOf(layer) === "linear");
  return MEASURES.map(([title, value]) => {
    const share = (part) => `${Math.round((100 * sum(part, value)) / sum(layers, value))} %`;
    const where = sum(linear, value) > sum(layers, value) / 2 ? `${share(linear)} in the linear layers` : `${share(early)} in the first third of the layers`;
    const most = best(layers, value);
    return sentence(`${title}: ${where}; most, ${share([most])}, in ${most.name}`);
  });
}

function described(layers, place) {
  const layer = layers[place];
  return [
    `${place + 1} of ${layers.length}: ${layer.name}, ${typeOf(layer)}, output ${sizes(layer.output_shape)}`,
    ...MEASURES.map(([title, value, words]) => `${title} ${words(value(layer))}`),
    `sees ${sizes(layer.receptive_field)} pixels`,
  ].join("; ");
}

/** Return the table behind the picture, written when it is opened. */
function behind(layers) {
  const place = el("div");
  const columns = { layer: (layer) => layer.name, type: typeOf, output: (layer) => sizes(layer.output_shape) };
  for (const [title, value, words] of MEASURES) columns[title] = (layer) => words(value(layer));
  columns.sees = (layer) => sizes(layer.receptive_field);
  const write = () => place.firstChild ?? fill(place, table(`${layers.length} layers`, columns, layers));
  return el("details", { ontoggle: write }, el("summary", "The same as a table"), place);
}
