// The page: sets up its parts, and tells when the server is away and back.

import { isReady, key, paragraph } from "./api.js";
import { readModels, setUpAsk } from "./ask.js";
import { setUpCard, training } from "./card.js";
import { $, el, fill } from "./dom.js";
import { setUpLandscape } from "./landscape.js";
import { setUpLive } from "./live.js";
import { setUpPicture } from "./picture.js";
import { emit, on, state } from "./state.js";

const AGAIN_S = 2; // between two looks whether the server is back
const MODELS_S = 15; // between two looks while no model is published
let away = false;
let next = 0; // timer of the next look

setUpPicture();
setUpAsk();
setUpLandscape();
setUpCard();
setUpLive();
on("trouble", trouble);
$("key-form").onsubmit = (event) => {
  event.preventDefault();
  key.set($("key").value.trim());
  start();
};
$("forget").onclick = () => {
  key.set("");
  $("key").value = "";
  start();
};
start();

async function start() {
  try {
    await readModels();
    clearTimeout(next);
    $("key-form").hidden = !key.get();
    warn(state.served.length ? null : nothingPublished());
    if (!state.served.length) next = setTimeout(start, 1000 * MODELS_S);
    else emit("back");
  } catch (error) {
    trouble(error);
  }
}

const nothingPublished = () => [
  el("strong", "No network is published yet. "),
  "This trains LeNet-5 on 4,000 digits in half a minute; the page finds it by itself:",
  el("pre", training("lenet5")),
  state.cards.flatMap((card) => card.unserved).map((line) => el("p.small", line)),
];

async function trouble(problem) {
  if (problem.code === "unauthorized") {
    $("key-form").hidden = false;
    warn([el("strong", "This server needs an API key. "), key.get() ? "The one of this tab is not among the server's." : "Its operator has some."]);
    $("key").focus();
    return;
  }
  warn([paragraph(problem), "This page tries again until it does."]);
  if (away) return;
  away = true;
  do await new Promise((wake) => setTimeout(wake, 1000 * AGAIN_S));
  while (!(await isReady()));
  away = false;
  start();
}

function warn(content) {
  const said = el("div", content);
  $("banner").hidden = !content;
  if (said.textContent !== $("banner").textContent) fill($("banner"), said); // else it is read out again
}
