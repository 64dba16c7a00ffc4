// Requests to the server that served this page, and its errors in words.

import { bytes, el, sentence } from "./dom.js";

const KEY = "convserve.key"; // in sessionStorage only: gone with the tab
const AWAY = "The server does not answer";
const TITLES = {
  gone: AWAY,
  no_replica: AWAY,
  not_ready: "The server is starting",
  forbidden: "This is for the server's operators",
  unauthorized: "This server needs an API key",
  broken_image: "This picture is broken",
  unsupported_format: "This file is not a picture that the server reads",
  body_too_large: "This file is too large",
  too_many_pixels: "This picture is too large",
  no_weights: "This network has no weights here",
  not_loadable: "This network cannot be loaded now",
  impossible_deadline: "This network is too slow for that",
  no_choice: "No network fits the limit",
  overloaded: "The server is busy",
  unknown_model: "This network is gone from the server",
  timeout: "The answer took too long",
};

export const key = {
  get: () => sessionStorage.getItem(KEY) ?? "",
  set: (value) => (value ? sessionStorage.setItem(KEY, value) : sessionStorage.removeItem(KEY)),
};

/** Error of a request: the problem that the server sent, or `gone` if no answer came. */
export class Problem extends Error {
  constructor(code, detail, more = {}) {
    super(detail);
    Object.assign(this, { code, detail, more });
  }
}

/** Send a request, and return its JSON, or its text. Throws Problem, or AbortError once `signal` is aborted. */
async function request(method, path, { query = {}, body, signal, text } = {}) {
  const url = `${new URL(path, document.baseURI)}?${new URLSearchParams(query)}`;
  let response, content;
  try {
    const headers = key.get() ? { "X-API-Key": key.get() } : {};
    response = await fetch(url, { method, body, headers, signal, cache: "no-store" });
    content = await response.text();
    if (response.ok && !text) content = JSON.parse(content); // a proxy's page is none
  } catch (error) {
    throw error.name === "AbortError" ? error : await unanswered(content ? null : body);
  }
  if (!response.ok) throw problemOf(response, content);
  return content;
}

export const get = (path, options) => request("GET", path, options);
export const post = (path, options) => request("POST", path, options);

function problemOf(response, content) {
  const { status, headers } = response;
  if (!headers.get("Content-Type")?.includes("problem+json")) return new Problem(status === 403 ? "forbidden" : "not_ready", `status ${status}`);
  const { code, detail, ...more } = JSON.parse(content);
  return new Problem(code, detail, { retry_after_s: headers.get("Retry-After"), ...more });
}

/** Return the problem of a request without an answer. A server that refuses a large body closes the connection. */
async function unanswered(body) {
  const large = body?.size > 1e6 && (await isReady());
  return large ? new Problem("body_too_large", `the server ended the upload of ${bytes(body.size)}`) : new Problem("gone", "");
}

export const isReady = () => fetch(new URL("readyz", document.baseURI), { cache: "no-store" }).then(({ ok }) => ok, () => false);

/** Return a problem in words: a title, a text, and the command that helps. */
export function inWords(problem) {
  const { code, detail, more = {} } = problem;
  if (!code && !detail) throw problem; // a mistake of this page's
  const wait = more.retry_after_ms / 1000 || Number(more.retry_after_s);
  const again = wait ? `Try again in ${wait < 10 ? Math.max(wait, 0.1).toFixed(1) : Math.ceil(wait)} s.` : "";
  return { title: TITLES[code] ?? "That did not work", text: [sentence(detail), again].filter(Boolean).join(" "), command: more.command };
}

/** Return a problem in words as a paragraph. */
export function paragraph(problem) {
  const { title, text } = inWords(problem);
  return el("p", el("strong", `${title}. `), text);
}
