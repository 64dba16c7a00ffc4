// Question and answers: who is asked, when, and what came back.

import { get, inWords, post } from "./api.js";
import { answerCard, problemCard } from "./answer.js";
import { $, debounced, el, fill, ms, parts, percent } from "./dom.js";
import { emit, on, state } from "./state.js";

const MOST = 16; // networks that /compare takes
const FIRST = 3; // of them are asked at first
const LEAST_MS = 0.5, MOST_MS = 2000; // ends of the time limit's slider

const chosen = new Set(); // tags
let asking = new AbortController();

export function setUpAsk() {
  for (const radio of document.getElementsByName("mode")) radio.onchange = changeMode;
  $("choices").onsubmit = (event) => event.preventDefault();
  $("filter").oninput = filter;
  $("dataset").onchange = ask;
  $("budget").oninput = () => {
    readBudget();
    askSoon();
  };
  readBudget();
  on("models", showNetworks);
  on("picture", ask);
  on("back", ask);
}

/** Read the catalogue, and tell of changes. Throws Problem. */
export async function readModels() {
  const cards = await get("models");
  if (JSON.stringify(cards) === JSON.stringify(state.cards)) return;
  state.cards = cards;
  state.served = cards.flatMap((card) => card.models.map((model) => ({ ...model, card })));
  emit("models");
}

function readBudget() {
  state.budget = Number((LEAST_MS * (MOST_MS / LEAST_MS) ** ($("budget").value / 100)).toPrecision(2));
  $("limit").textContent = `at most ${ms(state.budget)}`;
  $("budget").setAttribute("aria-valuetext", $("limit").textContent);
  emit("budget");
}

function changeMode(event) {
  state.mode = event.target.value;
  $("budget-box").hidden = state.mode !== "budget";
  $("chosen-box").hidden = state.mode === "budget";
  emit("budget");
  ask();
}

/** Show a box for each published network, by data set. */
function showNetworks() {
  const tags = state.served.map(({ tag }) => tag);
  for (const tag of chosen) if (!tags.includes(tag)) chosen.delete(tag);
  if (!chosen.size) tags.slice(0, FIRST).forEach((tag) => chosen.add(tag));
  const datasets = [...new Set(state.served.map(({ dataset }) => dataset))];
  fill($("networks"), datasets.map((dataset) => {
    const models = state.served.filter((model) => model.dataset === dataset);
    return el("div", { role: "group", "aria-label": dataset }, el("p.small", dataset), models.map((model) => chip(model, models)));
  }));
  fill($("dataset"), datasets.map((dataset) => el("option", { selected: dataset === $("dataset").value }, dataset)));
  $("dataset-label").hidden = datasets.length < 2;
  $("filter").hidden = tags.length <= MOST;
  filter();
  count();
}

function chip({ tag, card, status }, models) {
  const box = el("input", { type: "checkbox", checked: chosen.has(tag) });
  box.onchange = () => {
    box.checked &&= chosen.size < MOST;
    if (box.checked) chosen.add(tag);
    else chosen.delete(tag);
    count();
    askSoon();
  };
  const several = models.filter((model) => model.card === card).length > 1;
  const name = several ? `${card.name} ${tag.split("-").at(-1)}` : card.name;
  return el("label.chip", { title: tag }, box, name, status === "failed" && el("span.small", "cannot be loaded"));
}

function filter() {
  const wanted = $("filter").value.trim().toLowerCase();
  for (const label of document.querySelectorAll(".chip")) label.hidden = !label.title.includes(wanted);
}

function count() {
  $("count").textContent = `${chosen.size} of ${state.served.length}, at most ${MOST} at a time`;
}

const askSoon = debounced(ask, 250);

/** Ask the chosen networks, or the one that the server chooses. An earlier question ends. */
async function ask() {
  asking.abort();
  asking = new AbortController();
  const { signal } = asking;
  const tags = state.served.map(({ tag }) => tag).filter((tag) => chosen.has(tag));
  const budget = state.mode === "budget";
  if (!state.picture || !state.served.length) return;
  if (!budget && !tags.length) return show("Choose a network above.");
  const { blob } = state.picture;
  const [path, query, shown] = budget
    ? ["classify", { model: `auto@${$("dataset").value}`, max_latency_ms: state.budget }, showChoice]
    : ["compare", { models: tags }, showRows];
  $("answers").setAttribute("aria-busy", "true");
  try {
    const answer = await post(path, { query, body: blob, signal });
    state.asked = blob;
    shown(answer);
  } catch (error) {
    if (!signal.aborted) showProblem(error);
  }
}

function showChoice(answer) {
  const { reason, front } = answer.choice;
  const others = front.map((row) => `${parts(row.model).architecture} (${percent(row.top1)}, ${ms(row.expected_ms)})`);
  show(verdict([answer]), [`Chosen as ${reason}.`, `Not beaten in accuracy and time at once: ${others.join(", ")}.`], [answer]);
}

function showRows({ models }) {
  const answers = models.map((row) => row.answer).filter(Boolean);
  show(verdict(answers), [], answers, models.filter((row) => row.problem));
}

/** Return a line a data set: which networks agree. ImageNet's classes agree by index: libraries spell them differently. */
function verdict(answers) {
  const all = answers.map(({ model, predictions: [first] }) => ({ ...parts(model), ...first }));
  const datasets = Map.groupBy(all, ({ dataset }) => dataset);
  return [...datasets].map(([dataset, asked]) => {
    const groups = Map.groupBy(asked, ({ index, label }) => (dataset === "imagenet" ? index : label));
    const said = [...groups.values()].sort((one, other) => other.length - one.length);
    const each = said.map((group) => `${group.map(({ architecture }) => architecture).join(", ")} ${group[1] ? "say" : "says"} ${group[0].label}`);
    const text = said[1] ? `They disagree: ${each.join("; ")}.` : asked[1] ? `All ${asked.length} say ${asked[0].label}.` : `${each}.`;
    return el("div", datasets.size > 1 && el("span.small", `${dataset} `), text);
  });
}

function show(text, more = [], answers = [], failed = []) {
  state.answers = answers;
  $("answers").removeAttribute("aria-busy");
  fill($("verdict"), el("div.verdict", text), more.map((line) => el("p.small", line)));
  fill($("answers"), answers.map(answerCard), failed.map(problemCard));
  emit("answers");
}

function showProblem(problem) {
  const { title, text, command } = inWords(problem);
  show(`${title}.`, [text, command && el("code", command)]);
  $("verdict").append(el("button", { onclick: ask }, "Ask again"));
  if (["gone", "unauthorized"].includes(problem.code)) emit("trouble", problem);
}
