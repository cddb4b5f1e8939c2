/** The outlines over the picture: one group for each object, drawn anew as its polygons change. */

import { byId, el, svg } from "./dom.js";
import { describe, hover, isDone, on, select, state, vertexCount } from "./store.js";

/** @typedef {import("./store.js").Item} Item */

const overlay = byId("overlay");
const tags = byId("tags");
/** @type {Map<number, {group: any, tag: any}>} */
const drawn = new Map();

export function setUpOverlay() {
  overlay.append(svg("g", { id: "shapes", "aria-hidden": "true" }), svg("g", { id: "handles" }), svg("g", { id: "sketch", "aria-hidden": "true" }));
  on("picture", () => {
    const { width, height } = state.picture ?? { width: 1, height: 1 };
    overlay.setAttribute("viewBox", `0 0 ${width} ${height}`);
  });
  on("items", sync);
  on("item", draw);
  on("selection hover run", () => state.items.forEach(mark));
  on("opacity", () => overlay.style.setProperty("--fill", String(state.opacity)));
}

/** Groups for the items that there are, in their order. */
function sync() {
  const alive = new Set(state.items.map((item) => item.id));
  for (const [id, { group, tag }] of drawn) {
    if (alive.has(id)) continue;
    group.remove();
    tag.remove();
    drawn.delete(id);
  }
  for (const item of state.items) {
    if (!drawn.has(item.id)) drawn.set(item.id, make(item));
    draw(item);
  }
}

/** @param {Item} item */
function make(item) {
  const group = svg(
    "g",
    {
      class: `shape colour-${item.colour}`,
      "data-item": item.id,
      pointerenter: () => hover(item),
      pointerleave: () => hover(null),
      click: () => state.tool === "select" && select(item),
    },
    svg("path", { class: "hit" }),
    svg("path", { class: "area" }),
    svg("path", { class: "halo" }),
    svg("path", { class: "line" }),
    svg("path", { class: "dots" }),
  );
  byId("shapes").append(group);
  const tag = el("span", { class: `tag colour-${item.colour}` });
  tags.append(tag);
  return { group, tag };
}

/** @param {Item} item */
function draw(item) {
  const parts = drawn.get(item.id);
  if (!parts) return;
  const d = pathOf(item, !isDone(item));
  for (const path of parts.group.querySelectorAll(".hit, .area, .halo, .line")) path.setAttribute("d", d);
  parts.group.querySelector(".dots").setAttribute("d", isDone(item) ? "" : dotsOf(item));
  parts.group.setAttribute("data-vertices", String(vertexCount(item.polygons)));
  place(parts.tag, item);
  mark(item);
}

/** @param {Item} item */
function mark(item) {
  const parts = drawn.get(item.id);
  if (!parts) return;
  const active = state.selected === item || state.hovered === item;
  parts.group.classList.toggle("active", active);
  parts.group.classList.toggle("selected", state.selected === item);
  parts.group.classList.toggle("drawing", !isDone(item));
  parts.group.classList.toggle("gone", item.hidden);
  parts.tag.hidden = item.hidden || !active || vertexCount(item.polygons) === 0;
}

/**
 * The outline in pixels; a ring that is still being written stays open.
 * @param {Item} item
 * @param {boolean} [open]
 */
export function pathOf(item, open = false) {
  const last = item.polygons.length - 1;
  return item.polygons
    .filter((ring) => ring.length > 0)
    .map((ring, k) => `M${ring.map(point).join("L")}${open && k === last ? "" : "Z"}`)
    .join("");
}

/** Every vertex as a stroke without length, which round caps make a dot. @param {Item} item */
function dotsOf(item) {
  return item.polygons.flat().map((xy) => `M${point(xy)}h0`).join("");
}

/** @param {number[]} xy */
function point([x, y]) {
  const { width, height } = state.picture ?? { width: 1, height: 1 };
  return `${round(x * width)} ${round(y * height)}`;
}

/** @param {number} value */
const round = (value) => Math.round(value * 100) / 100;

/** Put the label at the top of the outline. @param {any} tag @param {Item} item */
function place(tag, item) {
  const points = item.polygons.flat();
  if (points.length === 0) return;
  const top = points.reduce((best, xy) => (xy[1] < best[1] ? xy : best));
  tag.style.left = `${top[0] * 100}%`;
  tag.style.top = `${top[1] * 100}%`;
  tag.classList.toggle("below", top[1] < 0.08);
  const score = item.result?.score;
  const { title } = describe(item.prompt, state.picture);
  tag.textContent = typeof score === "number" ? `${title}  ${score.toFixed(2)}` : title;
}
