// Landscape of the networks: accuracy against a cost. Accuracies of two kinds are never in one drawing.

import { get } from "./api.js";
import { $, amount, debounced, el, fill, ms, parts, percent, sentence, table } from "./dom.js";
import { plot } from "./plot.js";
import { emit, on, state } from "./state.js";

const EACH_S = 5; // between two looks at the server's times
const PAPERS = ["ImageNet", "CIFAR-10"]; // data sets on which papers state accuracies
const COSTS = {
  macs: ["multiply-accumulates", amount],
  params: ["parameters", amount],
  ms: ["ms to an answer, at the load of this moment", ms],
};

let paretos = []; // of each data set, as GET /pareto answers
let seen = false;

export function setUpLandscape() {
  for (const id of ["accuracy", "cost"]) $(id).onchange = show;
  on("models", look);
  on("answers", look);
  on("budget", show);
  $("plot-table").ontoggle = show;
  new IntersectionObserver(([entry]) => { seen = entry.isIntersecting; }).observe($("plot"));
  addEventListener("resize", debounced(show, 100));
  setInterval(() => seen && !document.hidden && !document.activeElement?.closest("#plot, #plot-table div") && look(), 1000 * EACH_S);
}

/** Ask the server for its models' accuracies and times. */
async function look() {
  const datasets = [...new Set(state.served.map(({ dataset }) => dataset))];
  const answers = await Promise.allSettled(datasets.map((dataset) => get("pareto", { query: { dataset } })));
  if (paretos.length && answers.some(({ reason }) => reason)) return; // the server is away
  paretos = answers.flatMap(({ value }) => value ?? []).filter(({ models }) => models.length);
  showKinds();
  show();
  emit("landscape");
}

/** Offer each kind of accuracy: of this server's weights by data set, and as papers state it. */
function showKinds() {
  const here = paretos.map(({ dataset, accuracy }) => [`here ${dataset}`, `${dataset}, ${accuracy.kind}, of the weights served here`]);
  const papers = PAPERS.map((data) => [`papers ${data}`, `${data}, as the papers state it`]);
  const options = [...here, ...papers];
  const first = options.find(([value]) => value === $("accuracy").value) ?? here.find((_, place) => paretos[place].models.length > 2) ?? papers[0];
  if ($("accuracy").length === options.length) return;
  fill($("accuracy"), options.map(([value, text]) => el("option", { value, selected: value === first[0] }, text)));
}

function show() {
  const [kind, data] = $("accuracy").value.split(" ");
  const pareto = paretos.find(({ dataset }) => dataset === data);
  const known = kind === "here" ? ofWeights(pareto) : ofPapers(data);
  const cost = $("cost").value;
  const [across, words] = COSTS[cost];
  const points = known.filter((point) => point[cost]).map((point) => ({
    ...point, x: point[cost], words: `${point.name}: top-1 ${point.y.toFixed(1)} %, ${words(point[cost])} ${cost === "ms" ? "to an answer now" : across}; ${point.source}`,
  }));
  const limit = cost === "ms" && state.mode === "budget" ? state.budget : null;
  plot($("plot"), points, { across, limit, open: ({ name }) => emit("card", name) });
  $("plot-note").textContent = [
    kind === "here" ? sentence(`${pareto?.accuracy.kind} accuracy: ${pareto?.accuracy.protocol}`) : "Accuracies as papers and authors state them, costs at the paper's input. Squares: another protocol, left out of the front.",
    "The line is the Pareto front: no network is as accurate for less. Orange: the networks that answered last.",
    known.length > points.length && "Times are those of the weights served here.",
    ...Object.entries((kind === "here" && pareto?.not_compared) || {}).map(([tag, reason]) => `${tag} is left out: ${reason}.`),
  ].filter(Boolean).join(" ");
  if ($("plot-table").open) $("plot-table").lastChild.replaceWith(asTable(known));
}

function ofWeights(pareto) {
  const asked = state.answers.map(({ model }) => model);
  return (pareto?.models ?? []).map(({ model, top1, macs, params, expected_ms, source, images }) => {
    const where = source ?? `${images} held-out images`;
    return { name: parts(model).architecture, y: 100 * top1, macs, params, ms: expected_ms, comparable: true, lit: asked.includes(model), source: where };
  });
}

/** Return the points of the papers' accuracies on a data set. Those of the most common protocol are comparable. */
function ofPapers(data) {
  const found = state.cards.flatMap((card) => {
    const result = card.published.find((result) => result.data === data && result.top1);
    return result ? { card, result, protocol: result.protocol.replace(/\d+/, "N") } : []; // whatever the crop's edge
  });
  const timesUsed = ({ protocol }) => found.filter((other) => other.protocol === protocol).length;
  const most = Math.max(...found.map(timesUsed));
  const asked = state.answers.map(({ model }) => parts(model).architecture);
  return found.map((each) => {
    const { card: { name, macs, params }, result } = each;
    const source = `${result.protocol}; ${result.source}`;
    return { name, y: result.top1, macs, params, comparable: timesUsed(each) === most, lit: asked.includes(name), source };
  });
}

const asTable = (points) => table("Accuracy and costs, the most accurate first", {
  network: (point) => point.name,
  "top-1": (point) => percent(point.y / 100),
  "multiply-accumulates": ({ macs }) => amount(macs),
  parameters: ({ params }) => amount(params),
  "time now": (point) => point.ms && ms(point.ms),
  source: (point) => point.source,
}, points.sort((one, other) => other.y - one.y));
