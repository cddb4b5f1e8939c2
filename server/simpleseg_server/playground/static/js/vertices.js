/** The vertices of the selected object, to be corrected by pointer and by keyboard. */

import { announce, byId, clamp, svg } from "./dom.js";
import { positionOf } from "./stage.js";
import { edit, isDone, on, state, undo } from "./store.js";

/** @typedef {import("./store.js").XY} XY */
/** @typedef {import("./store.js").Item} Item */

const STEPS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

let unit = 1;
/** @type {{item: number, shape: string} | null} */ let shown = null;
let current = 0; // the vertex that Tab reaches
/** @type {Item["polygons"] | null} */ let before = null; // while one is dragged

export function setUpVertices() {
  on("selection items tool item", refresh);
  on("scale", (/** @type {number} */ scale) => {
    unit = scale;
    refresh();
  });
  byId("overlay").addEventListener("dblclick", addAt);
}

/** Where on the outline of the selected object a double click adds a vertex. */
const NEAR_PX = 14;

/** The item whose vertices can be taken hold of. */
function editable() {
  const item = state.selected;
  return item && !item.hidden && isDone(item) && state.tool === "select" ? item : null;
}

function refresh() {
  const layer = byId("handles");
  const item = editable();
  if (!item) {
    layer.replaceChildren();
    shown = null;
    return;
  }
  const shape = item.polygons.map((ring) => ring.length).join();
  if (shown?.item !== item.id || shown.shape !== shape) build(layer, item, shape);
  position(layer, item);
}

/** @param {any} layer @param {Item} item @param {string} shape */
function build(layer, item, shape) {
  const focused = layer.contains(document.activeElement);
  const places = item.polygons.flatMap((ring, part) => ring.map((_, k) => [part, k]));
  if (shown?.item !== item.id) current = 0;
  current = clamp(current, 0, Math.max(places.length - 1, 0));
  shown = { item: item.id, shape };
  const handles = places.map(([part, k], n) => handle(part, k, n));
  layer.replaceChildren(...handles);
  layer.setAttribute("class", `colour-${item.colour}`);
  if (focused) handles[current]?.focus();
}

/** @param {number} part @param {number} k @param {number} n */
function handle(part, k, n) {
  return svg(
    "g",
    {
      class: "handle",
      role: "button",
      tabindex: n === current ? 0 : -1,
      pointerdown: (/** @type {PointerEvent} */ event) => grab(event, part, k, n),
      pointermove: (/** @type {PointerEvent} */ event) => drag(event, part, k),
      pointerup: drop,
      pointercancel: drop,
      keydown: (/** @type {KeyboardEvent} */ event) => key(event, part, k, n),
      focus: () => choose(n),
    },
    svg("circle", { class: "reach" }),
    svg("circle", { class: "knob" }),
  );
}

/** @param {any} layer @param {Item} item */
function position(layer, item) {
  const { width, height } = /** @type {import("./store.js").Picture} */ (state.picture);
  const points = item.polygons.flat();
  [...layer.children].forEach((group, n) => {
    const [x, y] = [points[n][0] * width, points[n][1] * height];
    group.setAttribute("aria-label", `Vertex ${n + 1} of ${points.length}: ${Math.round(x)}, ${Math.round(y)}`);
    for (const [circle, radius] of [[group.children[0], 11], [group.children[1], 4.5]]) {
      circle.setAttribute("cx", String(x));
      circle.setAttribute("cy", String(y));
      circle.setAttribute("r", String(radius * unit));
    }
  });
}

/** @param {number} n */
function choose(n) {
  const handles = [...byId("handles").children];
  handles[current]?.setAttribute("tabindex", "-1");
  current = n;
  handles[n]?.setAttribute("tabindex", "0");
}

/** @param {Item} item @param {number} part @param {number} k @param {XY | null} xy  null takes it out */
function changed(item, part, k, xy) {
  const ring = item.polygons[part].slice();
  if (xy) ring[k] = xy;
  else ring.splice(k, 1);
  return item.polygons.map((other, index) => (index === part ? ring : other));
}

/** @param {PointerEvent} event @param {number} part @param {number} k @param {number} n */
function grab(event, part, k, n) {
  event.stopPropagation();
  event.preventDefault();
  if (event.altKey) return remove(part, k);
  const group = /** @type {any} */ (event.currentTarget);
  group.setPointerCapture(event.pointerId);
  group.focus({ preventScroll: true });
  choose(n);
  before = /** @type {Item} */ (state.selected).polygons;
}

/** @param {PointerEvent} event @param {number} part @param {number} k */
function drag(event, part, k) {
  const item = editable();
  if (!before || !item) return;
  const isFirst = item.polygons === before;
  edit(item, changed(item, part, k, positionOf(event)), isFirst); // one step of undo for a drag
}

function drop() {
  before = null;
}

/** @param {KeyboardEvent} event @param {number} part @param {number} k @param {number} n */
function key(event, part, k, n) {
  const item = editable();
  if (!item) return;
  const handles = /** @type {any[]} */ ([...byId("handles").children]);
  if ((event.ctrlKey || event.metaKey) && event.key.toLowerCase() === "z") undo(item);
  else if (event.ctrlKey || event.metaKey || event.altKey) return;
  else if (event.key in STEPS) nudge(item, part, k, event);
  else if (event.key === "PageDown") handles[(n + 1) % handles.length].focus();
  else if (event.key === "PageUp") handles[(n - 1 + handles.length) % handles.length].focus();
  else if (event.key === "Home") handles[0].focus();
  else if (event.key === "End") handles[handles.length - 1].focus();
  else if (event.key === "Delete" || event.key === "Backspace") remove(part, k);
  else if (event.key === "Insert" || event.key === "+") insert(item, part, k);
  else if (event.key === "Escape") byId("canvas").focus();
  else return;
  event.preventDefault();
  event.stopPropagation();
}

/** By a pixel of the picture, or ten. @param {Item} item @param {number} part @param {number} k @param {KeyboardEvent} event */
function nudge(item, part, k, event) {
  const { width, height } = /** @type {import("./store.js").Picture} */ (state.picture);
  const [dx, dy] = STEPS[/** @type {keyof typeof STEPS} */ (event.key)];
  const [x, y] = item.polygons[part][k];
  const far = event.shiftKey ? 10 : 1;
  const moved = /** @type {XY} */ ([clamp(x + (dx * far) / width, 0, 1), clamp(y + (dy * far) / height, 0, 1)]);
  edit(item, changed(item, part, k, moved));
  announce(`${Math.round(moved[0] * width)}, ${Math.round(moved[1] * height)}`);
}

/** @param {number} part @param {number} k */
function remove(part, k) {
  const item = editable();
  if (!item) return;
  if (item.polygons[part].length <= 3) return announce("An outline keeps at least three vertices.");
  edit(item, changed(item, part, k, null));
  announce("Vertex removed.");
}

/** One more vertex, on the edge that is double-clicked. @param {MouseEvent} event */
function addAt(event) {
  const item = editable();
  if (!item) return;
  const { width, height } = /** @type {import("./store.js").Picture} */ (state.picture);
  const place = positionOf(event);
  const px = (/** @type {XY} */ xy) => /** @type {XY} */ ([xy[0] * width, xy[1] * height]);
  const edges = item.polygons.flatMap((ring, part) =>
    ring.map((a, k) => ({ part, k, far: distance(px(place), px(a), px(ring[(k + 1) % ring.length])) })),
  );
  const nearest = edges.reduce((best, edge) => (edge.far < best.far ? edge : best), edges[0]);
  if (!nearest || nearest.far > NEAR_PX * unit) return;
  insert(item, nearest.part, nearest.k, place);
}

/** From a point to the edge from a to b. @param {XY} p @param {XY} a @param {XY} b */
function distance(p, a, b) {
  const [dx, dy] = [b[0] - a[0], b[1] - a[1]];
  const along = ((p[0] - a[0]) * dx + (p[1] - a[1]) * dy) / (dx * dx + dy * dy || 1);
  const t = clamp(along, 0, 1);
  return Math.hypot(p[0] - a[0] - t * dx, p[1] - a[1] - t * dy);
}

/** One more vertex after another, halfway to the next where no place is given.
 * @param {Item} item @param {number} part @param {number} k @param {XY} [place] */
function insert(item, part, k, place) {
  const ring = item.polygons[part].slice();
  const [a, b] = [ring[k], ring[(k + 1) % ring.length]];
  ring.splice(k + 1, 0, place ?? [(a[0] + b[0]) / 2, (a[1] + b[1]) / 2]);
  edit(item, item.polygons.map((other, index) => (index === part ? ring : other)));
  announce("Vertex added.");
}
