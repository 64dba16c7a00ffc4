// Ways to bring a picture: choose, photograph, drop, paste, draw, or take a sample.

import { $, debounced } from "./dom.js";
import { emit, state } from "./state.js";

export function setUpPicture() {
  for (const [button, input] of [[$("choose"), $("file")], [$("photo"), $("camera")]]) {
    button.onclick = () => input.click();
    input.onchange = () => {
      take(input.files[0]);
      input.value = ""; // so that the same file can be chosen again
    };
  }
  for (const sample of document.querySelectorAll(".sample")) {
    const { src } = sample.querySelector("img");
    sample.onclick = async () => take(await (await fetch(src, { cache: "force-cache" })).blob(), sample.textContent);
  }
  const over = (event, inside) => {
    if (!event.dataTransfer?.types.includes("Files")) return;
    event.preventDefault();
    $("stage").classList.toggle("over", inside);
  };
  document.addEventListener("dragover", (event) => over(event, true));
  document.addEventListener("dragleave", (event) => over(event, event.relatedTarget !== null));
  document.addEventListener("drop", (event) => {
    over(event, false);
    take(event.dataTransfer?.files[0]);
  });
  document.addEventListener("paste", (event) => take(event.clipboardData?.files[0]));
  $("preview").onerror = () => {
    show("empty");
    $("empty").textContent = `This browser cannot show ${state.picture.name}.`;
  };
  setUpDrawing();
}

/** Make a file, if there is one, the picture that is asked about. */
function take(blob, name = blob?.name) {
  if (!blob) return;
  URL.revokeObjectURL($("preview").src);
  $("preview").src = URL.createObjectURL(blob);
  $("preview").alt = `The picture: ${name}`;
  show("preview");
  keep(blob, name);
}

function keep(blob, name) {
  state.picture = { blob, name };
  emit("picture");
}

function show(shown) {
  for (const id of ["empty", "preview", "pad"]) $(id).hidden = id !== shown;
  $("clear").hidden = shown !== "pad";
  $("draw").setAttribute("aria-pressed", shown === "pad");
}

function setUpDrawing() {
  const pad = $("pad");
  const context = pad.getContext("2d");
  const ask = debounced(() => pad.toBlob((blob) => pad.hidden || keep(blob, "drawing")), 250);
  const wipe = () => {
    context.fillStyle = "#fff"; // paper; the server inverts it where digits are light
    context.fillRect(0, 0, pad.width, pad.height);
  };
  const stroke = (event) => {
    const box = pad.getBoundingClientRect();
    context.lineTo(((event.clientX - box.left) * pad.width) / box.width, ((event.clientY - box.top) * pad.height) / box.height);
    context.stroke();
  };
  pad.onpointerdown = (event) => {
    pad.setPointerCapture(event.pointerId);
    Object.assign(context, { lineWidth: 20, lineCap: "round", lineJoin: "round", strokeStyle: "#000" });
    context.beginPath();
    stroke(event);
  };
  pad.onpointermove = (event) => {
    if (pad.hasPointerCapture(event.pointerId)) (event.getCoalescedEvents?.() ?? [event]).forEach(stroke); // over HTTPS only
  };
  pad.onpointerup = ask;
  $("clear").onclick = wipe;
  $("draw").onclick = () => {
    show(pad.hidden ? "pad" : "empty");
    wipe();
  };
}
