/** Where the time of a run went, as a waterfall, and what drafts saved. */

import { el } from "./dom.js";
import { isDone, vertexCount } from "./store.js";

/** In the order in which they happen. */
const STAGES = [
  ["read_body", "Read request"],
  ["decode_image", "Decode image"],
  ["queue", "Wait for a slot"],
  ["prefill", "Read image and phrase"],
  ["decode", "Write outline"],
  ["parse", "Read outline"],
  ["rasterize", "Rasterise"],
];

/**
 * @param {Element} pane
 * @param {import("./store.js").Run} run
 * @param {import("./store.js").Item[]} items  of the run
 */
export function showTiming(pane, run, items) {
  const response = run.response;
  if (!response) {
    const isComing = !items.every(isDone);
    const told = isComing ? "The times come with the end of the answer." : "This run did not come to its end.";
    pane.replaceChildren(el("p", { class: "blank" }, told));
    return;
  }
  pane.replaceChildren(waterfall(response.timings_ms, run.wallMs), figures(response, items));
}

/** @param {Record<string, number>} timings @param {number} wallMs */
function waterfall(timings, wallMs) {
  const total = timings.total ?? 0;
  const outside = Math.max(wallMs - total, 0);
  const whole = Math.max(total + outside, 0.001);
  const begins = beginnings(timings);
  const rows = STAGES.filter(([name]) => timings[name] >= 0.05).map(([name, title]) =>
    bar(name, title, begins[name], timings[name], whole),
  );
  if (outside > 0.05) rows.push(bar("network", "Network and browser", total, outside, whole));
  const all = `all done after ${ms(total)}`;
  const first = timings.first_point;
  return el(
    "table",
    { class: "waterfall" },
    el("caption", {}, first === undefined ? `Answered; ${all}` : `First vertex after ${ms(first)}, ${all}`),
    el("thead", { class: "hidden" }, el("tr", {}, ...["Stage", "When", "Time"].map((name) => el("th", { scope: "col" }, name)))),
    el("tbody", {}, ...rows),
  );
}

/**
 * When each stage began, since the request came in. The API tells how long stages took, those of
 * the slowest prompt where there are several: what comes before the model is laid from the front,
 * what comes after it from the end, so that stages of different prompts overlap as they did.
 * @param {Record<string, number>} timings
 * @returns {Record<string, number>}
 */
export function beginnings(timings) {
  const took = (/** @type {string} */ name) => timings[name] ?? 0;
  const rasterize = took("total") - took("rasterize");
  const parse = rasterize - took("parse");
  const decode = Math.max(parse - took("decode"), 0);
  const queue = took("read_body") + took("decode_image");
  const prefill = Math.max(Math.min(decode, took("first_token") || decode) - took("prefill"), 0);
  return { read_body: 0, decode_image: took("read_body"), queue, prefill, decode, parse, rasterize };
}

/** @param {string} name @param {string} title @param {number} begun @param {number} took @param {number} whole */
function bar(name, title, begun, took, whole) {
  const block = el("span", { class: `span ${name}` });
  block.style.marginInlineStart = `${(100 * Math.min(begun, whole)) / whole}%`;
  block.style.width = `${(100 * Math.min(took, whole - begun)) / whole}%`;
  return el(
    "tr",
    { "data-stage": name },
    el("th", { scope: "row" }, title),
    el("td", { class: "track", "aria-label": `begins at ${ms(begun)}` }, block),
    el("td", { class: "number" }, ms(took)),
  );
}

/** @param {any} response @param {import("./store.js").Item[]} items */
function figures(response, items) {
  const { usage, timings_ms } = response;
  const written = items.reduce((sum, item) => sum + vertexCount(item.original ?? []), 0);
  const drafts = Object.values(usage.drafts ?? {});
  const accepted = drafts.reduce((sum, draft) => sum + draft.accepted, 0);
  const drafted = drafts.reduce((sum, draft) => sum + draft.accepted + draft.rejected, 0);
  const share = (/** @type {number} */ a, /** @type {number} */ b) => (b ? (a / b).toFixed(1) : "–");
  const rows = [
    ["Tokens per vertex", share(usage.completion_tokens, written), "tokens of the answers over their vertices"],
    ["Tokens per step", share(usage.completion_tokens, usage.forward_passes), "tokens for each forward pass of the model"],
    ["Drafts accepted", drafted ? `${Math.round((100 * accepted) / drafted)} %` : "none", `${accepted} of ${drafted} drafted tokens`],
    ["Tokens written", String(usage.completion_tokens), `and ${usage.prompt_tokens} read`],
  ];
  if (timings_ms.decode) {
    const rate = Math.round((1000 * usage.completion_tokens) / timings_ms.decode);
    rows.push(["Tokens per second", String(rate), "while the outline was written"]);
  }
  return el(
    "dl",
    { class: "figures" },
    ...rows.map(([name, value, note]) => el("div", { title: note }, el("dt", {}, name), el("dd", {}, value))),
  );
}

/** @param {number} value  milliseconds */
function ms(value) {
  if (value >= 10_000) return `${(value / 1000).toFixed(1)} s`;
  return `${value >= 10 ? Math.round(value) : value.toFixed(1)} ms`;
}
