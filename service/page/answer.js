// Card of one answer: the top classes as bars, and the time by stage.

import { paragraph } from "./api.js";
import { el, ms, parts, percent, sum } from "./dom.js";
import { explain } from "./explain.js";
import { emit, state } from "./state.js";

const STAGES = ["decode", "queue", "inference"];

export function answerCard(answer) {
  const { architecture, dataset } = parts(answer.model);
  const why = el("div.why", { "aria-live": "polite" });
  return el(
    "article.answer",
    el("h3",
      el("button.link", { onclick: () => emit("card", architecture) }, architecture),
      el("span.small", ` ${dataset}${accuracyOf(answer)}`)),
    el("ol.bars", answer.predictions.map((prediction) => el("li", bar(answer, prediction, why)))),
    answer.superclasses && el("p.small", `By superclass: ${answer.superclasses.map(together).join(", ")}`),
    time(answer.timing_ms),
    el("p.small", `${answer.precision} on ${answer.runtime}, in a batch of ${answer.batch_size}`),
    why,
  );
}

export function problemCard({ model, problem }) {
  return el("article.answer.failed", el("h3", parts(model).architecture), paragraph(problem));
}

function accuracyOf({ model, precision }) {
  const { accuracy = {}, published_accuracy: published } = state.served.find(({ tag }) => tag === model) ?? {};
  const measured = accuracy[precision] ?? accuracy.fp32; // as /compare has it
  const known = measured ?? published;
  return known ? `, top-1 ${percent(known.top1)} ${measured ? "measured" : "published"}` : "";
}

const together = ({ superclass, probability }) => `${superclass} ${percent(probability)}`;

/** Return a class with its probability, as a button that asks why. */
function bar(answer, prediction, why) {
  const strip = el("span.strip");
  strip.style.setProperty("--share", prediction.probability);
  return el(
    "button.bar", { title: `Why ${prediction.label}?`, onclick: (event) => explain(answer.model, prediction, why, event.currentTarget) },
    el("span.label", prediction.label, prediction.superclass && el("span.small", ` ${prediction.superclass}`)),
    el("span.hint", "Why?"), el("span", percent(prediction.probability)), strip,
  );
}

/** Return the time of each stage, as a strip and in words. */
function time(timing) {
  const strip = el("span.stages", { "aria-hidden": "true" }, STAGES.map((stage) => {
    const part = el(`span.${stage}`);
    part.style.flexGrow = 1000 * timing[stage]; // a sum below 1 would leave room
    return part;
  }));
  return el(
    "p.time", el("strong", ms(sum(STAGES, (stage) => timing[stage]))), strip,
    el("span.small", STAGES.map((stage) => [el(`span.key.${stage}`, `${stage} ${ms(timing[stage])}`), " "])),
  );
}
