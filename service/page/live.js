// The last minute as the operator sees it, from /metrics alone.

import { get, paragraph } from "./api.js";
import { factList } from "./card.js";
import { $, amount, el, fill, ms, sum, svg, table } from "./dom.js";

const EACH_S = 2, KEPT = 31; // between two samples, and how many make a minute
const IMAGES = "convserve_images_total", TIMES = "convserve_stage_duration_seconds_bucket", WAITING = "convserve_queue_depth";
const LINE = /^(\w+?)(?:\{(.*)\})? ([^ ]+)$/;
const LABEL = /(\w+)="((?:[^"\\]|\\.)*)"/g;

let samples = []; // { at, series }, the oldest first

export function setUpLive() {
  $("live-details").ontoggle = look;
  setInterval(look, 1000 * EACH_S);
}

async function look() {
  if (!$("live-details").open || document.hidden) {
    samples = [];
    return;
  }
  try {
    samples.push({ at: performance.now() / 1000, series: parse(await get("metrics", { text: true })) });
    samples = samples.slice(-KEPT);
    fill($("live-body"), drawn());
  } catch (error) {
    samples = []; // a new server counts from 0
    fill($("live-body"), paragraph(error));
  }
}

/** Return the series in Prometheus' format by name: lists of { value, and each label }. */
function parse(text) {
  const series = {};
  for (const line of text.split("\n")) {
    const [, name, labels = "", value] = LINE.exec(line) ?? [];
    const pairs = [...labels.matchAll(LABEL)].map(([, key, text]) => [key, text]);
    if (name) (series[name] ??= []).push({ ...Object.fromEntries(pairs), value: Number(value) });
  }
  return series;
}

const total = ({ series }, name, wanted = () => true) => sum((series[name] ?? []).filter(wanted), ({ value }) => value);

const values = ({ series }, name, label) => [...new Set((series[name] ?? []).map((each) => each[label]))].filter(Boolean);

const answered = ({ outcome }) => outcome === "ok";
const refused = (each) => !answered(each);

function drawn() {
  const [first, last] = [samples[0], samples.at(-1)];
  const seconds = last.at - first.at;
  if (!seconds) return el("p.small", "Looking …");
  const grown = (name, wanted) => total(last, name, wanted) - total(first, name, wanted);
  const rate = (wanted) => (grown(IMAGES, wanted) / seconds).toFixed(1);
  const refusals = values(last, IMAGES, "outcome").map((code) => [code, grown(IMAGES, ({ outcome }) => outcome === code)]).filter(([code, count]) => code !== "ok" && count);
  return [
    factList({
      "images a second": [rate(answered), line(answered)],
      "refused or failed a second": [rate(refused), line(refused)],
      "images that wait now": amount(total(last, WAITING)),
    }),
    table(`Time by stage over the last ${Math.round(seconds)} s`, {
      stage: (stage) => stage,
      p50: (stage) => quantile(grown, last, stage, 0.5),
      p95: (stage) => quantile(grown, last, stage, 0.95),
    }, ["decode", "queue", "inference"]),
    table("By network", {
      weights: (tag) => tag,
      "images a second": (tag) => rate((each) => each.model === tag && answered(each)),
      waiting: (tag) => amount(total(last, WAITING, ({ model }) => model === tag)),
    }, values(last, WAITING, "model")),
    refusals.length > 0 && table("Refusals and failures", { code: ([code]) => code, requests: ([, count]) => amount(count) }, refusals),
  ];
}

function line(wanted) {
  const rates = samples.slice(1).map((sample, place) => (total(sample, IMAGES, wanted) - total(samples[place], IMAGES, wanted)) / (sample.at - samples[place].at));
  const most = Math.max(...rates, 1);
  const points = rates.map((rate, place) => `${(120 * place) / (KEPT - 2)},${30 - (28 * rate) / most}`).join(" ");
  return svg("svg.spark", { viewBox: "0 0 120 32", "aria-hidden": "true" }, svg("polyline", { points }));
}

/** Return a quantile of a stage's time in ms, interpolated in its bucket; "" if there is none. */
function quantile(grown, last, stage, share) {
  const buckets = values(last, TIMES, "le").map((le) => [Number(le.replace("+Inf", "Infinity")), grown(TIMES, (each) => each.stage === stage && each.le === le)]);
  buckets.sort(([one], [other]) => one - other);
  const wanted = share * (buckets.at(-1)?.[1] ?? 0);
  const place = buckets.findIndex(([, count]) => count >= wanted);
  if (!wanted) return "";
  const [[low, before], [high, count]] = [buckets[place - 1] ?? [0, 0], buckets[place]];
  return high === Infinity ? `> ${ms(1000 * low)}` : ms(1000 * (low + ((wanted - before) / (count - before)) * (high - low)));
}
