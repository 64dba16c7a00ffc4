// Why a network said so: the picture with what speaks for a class.

import { paragraph, post, Problem } from "./api.js";
import { best, el, fill, ms, sum } from "./dom.js";
import { state } from "./state.js";

const HEAT = [213, 94, 0], OPACITY = 0.7; // as the server's own overlay
const LEAST = 280, WIDEST = 640; // pixels of the drawing

/** Ask why a model named a class, and show the answer in `place`; `button` asked. An earlier question there ends. */
export async function explain(model, { index, label }, place, button) {
  const blob = state.asked;
  place.asking?.abort();
  const { signal } = (place.asking = new AbortController());
  for (const bar of place.parentElement.querySelectorAll(".bar")) bar.setAttribute("aria-pressed", bar === button);
  fill(place, el("p.small", `Asking why ${label} …`));
  let shown;
  try {
    const asked = post("explain", { query: { model, class: index }, body: blob, signal });
    shown = figure(...(await Promise.all([asked, createImageBitmap(blob)])));
  } catch (error) {
    shown = paragraph(error instanceof Problem ? error : { detail: "this browser cannot show the picture" });
  }
  if (!signal.aborted) fill(place, shown);
}

function figure(answer, bitmap) {
  const canvas = el("canvas", { role: "img", "aria-label": described(answer) });
  const shown = el("input", { type: "checkbox", checked: true, onchange: () => draw(canvas, answer, bitmap, shown.checked) });
  draw(canvas, answer, bitmap, true);
  return el("figure", canvas, el("figcaption.small", said(answer)), el("label.small", shown, " show what speaks for the class"));
}

function said({ method, explained, grid, images, timing_ms: timing }) {
  const time = ms(sum(Object.values(timing), (stage) => stage));
  return method === "occlusion"
    ? `Orange: where hiding a part of the picture makes ${explained.label} less probable. ${images} images were run, in ${time}.`
    : `Orange: what speaks for ${explained.label} in the class activation map of ${grid.length} x ${grid.length} cells, whose mean is the answer. One image, in ${time}.`;
}

/** Return where the strongest cell lies, for those who do not see the drawing. */
function described({ grid, explained }) {
  const cells = grid.flatMap((row, y) => row.map((value, x) => ({ value, x, y })));
  const { x, y } = best(cells, (cell) => cell.value);
  const third = (place, ...names) => names[Math.floor((3 * place) / grid.length)];
  return `Most of what speaks for ${explained.label} lies ${third(y, "at the top", "in the middle", "at the bottom")}, ${third(x, "left", "centre", "right")}.`;
}

function draw(canvas, { grid, seen }, bitmap, heated) {
  const scale = Math.max(LEAST / bitmap.width, Math.min(1, WIDEST / bitmap.width));
  const [width, height] = [bitmap.width * scale, bitmap.height * scale].map(Math.round);
  Object.assign(canvas, { width, height });
  const context = canvas.getContext("2d");
  context.imageSmoothingEnabled = scale < 2;
  context.drawImage(bitmap, 0, 0, width, height);
  context.imageSmoothingEnabled = true;
  const { left, top, right, bottom } = seen;
  if (heated) context.drawImage(heat(grid), left * width, top * height, (right - left) * width, (bottom - top) * height);
}

/** Return a canvas of one pixel a cell, the more opaque the more the cell speaks for the class. */
function heat(grid) {
  const canvas = el("canvas", { width: grid.length, height: grid.length });
  const context = canvas.getContext("2d");
  const pixels = context.createImageData(grid.length, grid.length);
  const values = grid.flat();
  const most = Math.max(...values, 1e-12);
  values.forEach((value, cell) => pixels.data.set([...HEAT, 255 * OPACITY * Math.max(0, value / most)], 4 * cell));
  context.putImageData(pixels, 0, 0);
  return canvas;
}
