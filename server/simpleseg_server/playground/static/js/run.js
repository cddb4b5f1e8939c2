/** A run: prompts on the picture, answered by a stream that draws as it comes. */

import { isAbort, segment } from "./api.js";
import { announce, clamp } from "./dom.js";
import { complain, hush } from "./problems.js";
import { addItem, isDone, select, state, tell } from "./store.js";
import { STATUS } from "./words.js";

/** @typedef {import("./store.js").Prompt} Prompt */
/** @typedef {import("./store.js").Item} Item */

/**
 * Ask for the prompts' objects; each becomes an item. One run at a time: a new one stops the last.
 * @param {Prompt[]} prompts
 * @param {boolean} refine
 */
export async function run(prompts, refine) {
  const picture = state.picture;
  if (!picture || prompts.length === 0) return;
  state.run?.stop.abort();
  hush();
  /** @type {import("./store.js").Run} */
  const own = { prompts, refine, response: null, wallMs: 0, stop: new AbortController() };
  state.run = own;
  const items = prompts.map((prompt) => addItem(prompt, own));
  select(items[0]);
  tell("run");
  announce(prompts.length > 1 ? `Segmenting ${prompts.length} objects.` : "Segmenting.");
  const began = performance.now();
  try {
    const fields = { prompts, refine, include: ["timings", "raw_text"] };
    for await (const event of segment(picture, fields, own.stop.signal)) take(event, items, own);
    own.wallMs = performance.now() - began;
    announce(items.map(spoken).join(" "));
  } catch (error) {
    giveUp(items, isAbort(error) ? "stopped" : "failed");
    if (isAbort(error)) announce("Stopped.");
    else complain(error);
  } finally {
    if (state.run === own) state.run = null;
    tell("run");
  }
}

export function stopRun() {
  state.run?.stop.abort();
}

/**
 * @param {any} event
 * @param {Item[]} items
 * @param {import("./store.js").Run} own
 */
function take(event, items, own) {
  if (event.type === "segmentation.points.delta") grow(items[event.result], event);
  else if (event.type === "segmentation.result.done") finish(items[event.result.index], event.result);
  else if (event.type === "segmentation.completed") {
    own.response = event.response;
    for (const result of event.response.results) finish(items[result.index], result);
  }
}

/** @param {Item | undefined} item @param {{polygon: number, points: any[]}} delta */
function grow(item, { polygon, points }) {
  if (!item) return;
  const rings = item.polygons.slice();
  while (rings.length <= polygon) rings.push([]);
  rings[polygon] = [...rings[polygon], ...points];
  item.polygons = rings;
  item.status = "drawing";
  tell("item", item);
}

/** @param {Item | undefined} item @param {any} result */
function finish(item, result) {
  if (!item) return;
  item.result = result;
  item.status = result.status;
  if (item.original === null) {
    const inside = (/** @type {number[]} */ xy) => xy.map((value) => clamp(value, 0, 1));
    item.original = (result.polygons ?? []).map((/** @type {any} */ ring) => ring.map(inside));
    item.polygons = item.original ?? [];
  }
  tell("item", item);
}

/** @param {Item[]} items @param {"stopped" | "failed"} status */
function giveUp(items, status) {
  for (const item of items) {
    if (isDone(item)) continue;
    item.status = status;
    item.polygons = item.polygons.filter((ring) => ring.length > 2);
    item.original = item.polygons;
    tell("item", item);
  }
}

/** @param {Item} item */
function spoken(item) {
  const score = item.result?.score;
  const sure = typeof score === "number" ? `, score ${score.toFixed(2)}` : "";
  return `${item.label}: ${STATUS[item.status][0].toLowerCase()}${sure}.`;
}
