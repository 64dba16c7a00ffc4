// The page: sets up its parts, reads the catalogue, and tells when the server is away and back.

import { inWords, isReady, key } from "./api.js";
import { readModels, setUpAsk } from "./ask.js";
import { setUpCard } from "./card.js";
import { $, el, fill } from "./dom.js";
import { setUpLandscape } from "./landscape.js";
import { setUpLive } from "./live.js";
import { setUpPicture } from "./picture.js";
import { emit, on, state } from "./state.js";

const AGAIN_S = 2; // between two looks whether the server is back
const MODELS_S = 15; // between two looks at the catalogue while no model is published
let away = false;

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
    $("key-form").hidden = !key.get();
    warn(state.served.length ? null : nothingPublished());
    if (!state.served.length) setTimeout(start, 1000 * MODELS_S);
    else emit("back");
  } catch (error) {
    trouble(error);
  }
}

const nothingPublished = () => [
  el("strong", "No network is published yet. "),
  "This trains LeNet-5 on 4,000 digits in half a minute; the page finds it by itself:",
  el("pre", "python -m training lenet5 --data mnist5k && python -m training publish checkpoints/lenet5-mnist5k"),
  state.cards.flatMap((card) => card.unserved).map((line) => el("p.small", line)),
];

async function trouble(problem) {
  const { title, text } = inWords(problem);
  if (problem.code === "unauthorized") {
    $("key-form").hidden = false;
    warn([el("strong", `${title}. `), key.get() ? "The one of this tab is not among the server's." : "Its operator has some."]);
    $("key").focus();
    return;
  }
  warn([el("strong", `${title}. `), text, " This page tries again until it does."]);
  if (away) return;
  away = true;
  do await new Promise((wake) => setTimeout(wake, 1000 * AGAIN_S));
  while (!(await isReady()));
  away = false;
  start();
}

function warn(content) {
  $("banner").hidden = !content;
  fill($("banner"), content);
}
