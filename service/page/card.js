// Card of a network: its paper, accuracies with sources, layers, and the weights served.

import { get, paragraph } from "./api.js";
import { $, amount, bytes, el, fill, percent, table } from "./dom.js";
import { layerPicture } from "./layers.js";
import { on, state } from "./state.js";

const ADDRESSES = { arXiv: "https://arxiv.org/abs/", doi: "https://doi.org/" };
const hashed = () => /^#card\/(\w+)$/.exec(location.hash)?.[1];

const news = get("page/new.json").catch(() => ({})); // what was new, in a sentence, by architecture or family
let shown = "vgg16"; // whose picture says the most at a glance: memory early, parameters late

export function setUpCard() {
  on("models", () => {
    fill($("network"), state.cards.map((card) => el("option", card.name)));
    open(hashed() ?? shown);
  });
  let fresh = hashed();
  on("landscape", () => {
    if (fresh) move(); // not before, since the landscape is above
    fresh = "";
  });
  on("card", (name) => {
    history.pushState(null, "", `#card/${name}`);
    open(name, true);
  });
  $("network").onchange = () => {
    history.replaceState(null, "", `#card/${$("network").value}`);
    open($("network").value);
  };
  addEventListener("popstate", () => hashed() && open(hashed(), true));
}

/** Scroll to the card, and put the focus there. */
function move() {
  $("card").scrollIntoView();
  $("card").focus({ preventScroll: true }); // which would go to its middle
}

/** Show the card of an architecture; with `moves` go there. */
async function open(name, moves) {
  const card = state.cards.find((each) => each.name === name);
  if (!card) return;
  $("network").value = shown = name;
  if (moves) move();
  const layers = el("div", el("p.small", "Reading the layers …"));
  fill($("card-body"), head(card, await news), layers, weights(card));
  try {
    const { paper } = await get(`models/${name}/complexity`);
    fill(layers, layerPicture(paper, $("card-body").clientWidth));
  } catch (error) {
    fill(layers, paragraph(error));
  }
}

function head({ name, family, paper, published, input_shape: [channels, high, wide], ...card }, isNew) {
  const facts = {
    parameters: amount(card.params),
    "multiply-accumulates": amount(card.macs),
    "peak memory of one image": bytes(card.peak_bytes),
    input: `${wide} x ${high} x ${channels}`,
    classes: card.classes,
  };
  const [library, number] = paper.id.split(":");
  const title = ADDRESSES[library] ? el("a", { href: ADDRESSES[library] + number, rel: "noreferrer" }, paper.title) : `${paper.title}, ${paper.id}`;
  return [
    el("h3", name),
    el("p", isNew[name] ?? isNew[family] ?? ""),
    el("p", `${paper.authors}: `, title, ` (${paper.year})`),
    factList(facts),
    published.length > 0 && table("As papers and authors state it", {
      data: (row) => row.data,
      "top-1": (row) => row.top1 && `${row.top1} %`,
      "top-5": (row) => row.top5 && `${row.top5} %`,
      how: (row) => row.protocol,
      source: (row) => row.source,
    }, published),
  ];
}

export const factList = (facts) => el("dl.facts", Object.entries(facts).map(([name, fact]) => el("div", el("dt", name), el("dd", fact))));

/** Return the command that publishes weights of an architecture. */
export const training = (name) => `python -m training ${name} --data mnist5k && python -m training publish checkpoints/${name}-mnist5k`;

/** Return the weights, or the command that makes some. */
function weights({ name, models, unserved }) {
  if (models.length) return [el("h4", "Weights served here"), models.map(({ tag, ...model }) => [el("p", el("code", tag)), el("p.small", stateOf(model))])];
  return [
    el("h4", "No weights are served here"),
    el("p", "This makes some of 4,000 digits, which the server then finds by itself; ", el("code", "python -m training import"), " lists the networks whose weights a library publishes."),
    el("pre", training(name)),
    unserved.map((line) => el("p.small", line)),
  ];
}

function stateOf({ accuracy, published_accuracy: authors, status, runtime, precision, memory_mb, error, tuning }) {
  return [
    ...Object.entries(accuracy).map(([precision, { top1, images }]) => `top-1 ${percent(top1)} measured in ${precision} on ${images} held-out images`),
    authors && `top-1 ${percent(authors.top1)} published: ${authors.protocol} (${authors.source})`,
    status === "ready" ? `served in ${precision} on ${runtime}, ${bytes(1e6 * memory_mb)}` : status,
    error,
    tuning.reason,
  ].filter(Boolean).join("; ");
}
