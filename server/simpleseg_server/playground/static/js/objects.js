/** The list of objects: what was asked, how it went, and what can be done with it. */

import { byId, el } from "./dom.js";
import {
  clearItems,
  describe,
  hover,
  isDone,
  isEdited,
  on,
  removeItem,
  select,
  state,
  tell,
  undo,
  edit,
  vertexCount,
} from "./store.js";
import { SCORE, STATUS } from "./words.js";

/** @typedef {import("./store.js").Item} Item */

/** @type {Map<number, any>} */
const cards = new Map();

/** @param {(item: Item) => void} again  asks for an item once more */
export function setUpObjects(again) {
  on("items", () => sync(again));
  on("item", update);
  on("selection hover", () => state.items.forEach(mark));
  byId("clear").addEventListener("click", () => {
    state.run?.stop.abort();
    clearItems();
    byId("phrase").focus();
  });
}

/** @param {(item: Item) => void} again */
function sync(again) {
  const alive = new Set(state.items.map((item) => item.id));
  for (const [id, card] of cards) {
    if (alive.has(id)) continue;
    card.remove();
    cards.delete(id);
  }
  for (const item of state.items) {
    if (cards.has(item.id)) continue;
    const card = make(item, again);
    cards.set(item.id, card);
    byId("objects").append(card);
    update(item);
  }
  byId("clear").hidden = state.items.length === 0;
  byId("objects-blank").hidden = state.items.length > 0;
}

/** @param {Item} item @param {(item: Item) => void} again */
function make(item, again) {
  const { title, where } = describe(item.prompt, state.picture);
  const action = (/** @type {string} */ name, /** @type {string} */ text, /** @type {() => void} */ act) =>
    el("button", { type: "button", class: "quiet small", "data-action": name, click: act }, text);
  const head = el(
    "button",
    { type: "button", class: "object-head", "aria-pressed": "false", click: () => select(item) },
    el("span", { class: "swatch", "aria-hidden": "true" }),
    el("span", { class: "object-name" }, title),
    el("span", { class: "status" }),
  );
  return el(
    "li",
    {
      class: `object colour-${item.colour}`,
      pointerenter: () => hover(item),
      pointerleave: () => hover(null),
    },
    head,
    where ? el("p", { class: "fine where" }, where) : null,
    el("div", { class: "score" }, el("span", { class: "meter" }, el("span", {})), el("span", { class: "score-kind fine" }), el("span", { class: "score-number" })),
    el("p", { class: "facts fine" }),
    el("p", { class: "how fine" }, "Drag a vertex to correct it; a double click adds one, an Alt-click removes one."),
    el(
      "div",
      { class: "actions", role: "group", "aria-label": `Actions for ${title}` },
      action("hide", "Hide", () => toggle(item)),
      action("undo", "Undo", () => undo(item)),
      action("reset", "Reset", () => reset(item)),
      action("again", "Ask again", () => again(item)),
      action("remove", "Remove", () => {
        if (!isDone(item)) item.run.stop.abort();
        removeItem(item);
        byId("phrase").focus({ preventScroll: true });
      }),
    ),
  );
}

/** @param {Item} item */
function toggle(item) {
  item.hidden = !item.hidden;
  tell("item", item);
}

/** @param {Item} item */
function reset(item) {
  if (item.original) edit(item, item.original);
}

/** @param {Item} item */
function update(item) {
  const card = cards.get(item.id);
  if (!card) return;
  const [word, meaning] = STATUS[item.status] ?? [item.status, ""];
  const status = card.querySelector(".status");
  status.textContent = word;
  status.title = meaning;
  card.dataset.status = item.status;
  showScore(card, item);
  card.querySelector(".facts").textContent = facts(item);
  const shown = { hide: isDone(item) && vertexCount(item.polygons) > 0, undo: item.past.length > 0, reset: isEdited(item), again: isDone(item), remove: true };
  for (const [name, is] of Object.entries(shown)) {
    card.querySelector(`[data-action=${name}]`).hidden = !is;
  }
  const hide = card.querySelector("[data-action=hide]");
  hide.textContent = item.hidden ? "Show" : "Hide";
  card.classList.toggle("gone", item.hidden);
  card.classList.toggle("correctable", isDone(item) && !item.hidden && vertexCount(item.polygons) > 0);
  mark(item);
}

/** @param {any} card @param {Item} item */
function showScore(card, item) {
  const score = item.result?.score;
  const row = card.querySelector(".score");
  row.hidden = typeof score !== "number";
  if (row.hidden) return;
  row.querySelector(".meter span").style.width = `${Math.round(score * 100)}%`;
  row.querySelector(".score-number").textContent = score.toFixed(2);
  const [kind, meaning] = SCORE[item.result.score_type] ?? ["score", ""];
  row.querySelector(".score-kind").textContent = kind;
  row.title = meaning;
}

/** @param {Item} item */
function facts(item) {
  const vertices = vertexCount(item.polygons);
  if (vertices === 0) return STATUS[item.status]?.[1] ?? "";
  const parts = item.polygons.length > 1 ? ` in ${item.polygons.length} parts` : "";
  const said = [`${vertices} vertices${parts}`];
  if (isEdited(item)) said.push("corrected by hand");
  else if (typeof item.result?.area === "number") said.push(`${(item.result.area * 100).toFixed(1)} % of the image`);
  if (item.status === "truncated" && item.result?.finish_reason === "deadline") said.push("out of time");
  return said.join(" · ");
}

/** @param {Item} item */
function mark(item) {
  const card = cards.get(item.id);
  if (!card) return;
  card.classList.toggle("selected", state.selected === item);
  card.classList.toggle("hovered", state.hovered === item);
  card.querySelector(".object-head").setAttribute("aria-pressed", String(state.selected === item));
}
