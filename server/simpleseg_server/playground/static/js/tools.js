/** Points and boxes on the picture, by pointer and by keyboard. */

import { announce, byId, clamp, svg } from "./dom.js";
import { positionOf } from "./stage.js";
import { on, select, setTool, state, undo } from "./store.js";

/** @typedef {import("./store.js").XY} XY */
/** @typedef {(prompt: import("./store.js").Prompt) => void} Ask */

const canvas = byId("canvas");
const STEPS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
const TOOLS = /** @type {const} */ ({ v: "select", p: "point", b: "box" });
const MIN_BOX = 0.005;

/** @type {XY} */ let cursor = [0.5, 0.5];
/** @type {XY | null} */ let corner = null;

/** @param {Ask} ask  what to do with a finished point or box */
export function setUpTools(ask) {
  const frame = byId("frame");
  frame.addEventListener("pointerdown", (/** @type {PointerEvent} */ event) => down(event, ask));
  frame.addEventListener("pointermove", (/** @type {PointerEvent} */ event) => {
    if (corner && frame.hasPointerCapture(event.pointerId)) sketchBox(corner, positionOf(event));
  });
  frame.addEventListener("pointerup", (/** @type {PointerEvent} */ event) => up(event, ask));
  frame.addEventListener("pointercancel", cancel);
  canvas.addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => key(event, ask));
  on("tool", () => {
    cancel();
    if (state.tool !== "select" && document.activeElement === canvas) sketchCursor();
  });
  on("picture", () => {
    cursor = [0.5, 0.5];
    cancel();
  });
}

/** @param {PointerEvent} event @param {Ask} ask */
function down(event, ask) {
  if (event.button !== 0) return;
  if (state.tool === "select") {
    if (event.target === byId("overlay") || event.target === byId("image")) select(null);
    return;
  }
  event.preventDefault();
  canvas.focus({ preventScroll: true });
  const place = positionOf(event);
  if (state.tool === "point") return ask({ point: place });
  corner = place;
  byId("frame").setPointerCapture(event.pointerId);
}

/** @param {PointerEvent} event @param {Ask} ask */
function up(event, ask) {
  if (!corner || !byId("frame").hasPointerCapture(event.pointerId)) return;
  finishBox(positionOf(event), ask);
}

/** @param {XY} end @param {Ask} ask */
function finishBox(end, ask) {
  const box = boxOf(/** @type {XY} */ (corner), end);
  cancel();
  if (box[2] - box[0] < MIN_BOX || box[3] - box[1] < MIN_BOX) {
    announce("The box is too small.");
    return;
  }
  ask({ box });
}

/** @param {XY} a @param {XY} b @returns {[number, number, number, number]} */
const boxOf = (a, b) => [
  Math.min(a[0], b[0]),
  Math.min(a[1], b[1]),
  Math.max(a[0], b[0]),
  Math.max(a[1], b[1]),
];

function cancel() {
  corner = null;
  byId("sketch").replaceChildren();
}

/** @param {KeyboardEvent} event @param {Ask} ask */
function key(event, ask) {
  if (event.target !== canvas) return;
  const letter = event.key.toLowerCase();
  if ((event.ctrlKey || event.metaKey) && letter === "z" && state.selected) {
    undo(state.selected);
  } else if (event.ctrlKey || event.metaKey || event.altKey) {
    return;
  } else if (letter in TOOLS) {
    setTool(TOOLS[/** @type {"v"} */ (letter)]);
    announce(`${TOOLS[/** @type {"v"} */ (letter)]} tool`);
  } else if (event.key in STEPS && state.tool !== "select") {
    move(/** @type {keyof typeof STEPS} */ (event.key), event.shiftKey);
  } else if (event.key === "Enter" && state.tool !== "select") {
    place(ask);
  } else if (event.key === "Escape" && (corner || state.tool !== "select")) {
    if (corner) cancel();
    else setTool("select");
  } else {
    return;
  }
  event.preventDefault();
}

/** @param {keyof typeof STEPS} name @param {boolean} far */
function move(name, far) {
  const step = far ? 0.1 : 0.01;
  const [dx, dy] = STEPS[name];
  cursor = [clamp(cursor[0] + dx * step, 0, 1), clamp(cursor[1] + dy * step, 0, 1)];
  sketchCursor();
  const { width, height } = /** @type {import("./store.js").Picture} */ (state.picture);
  announce(`${Math.round(cursor[0] * width)}, ${Math.round(cursor[1] * height)}`);
}

/** @param {Ask} ask */
function place(ask) {
  if (state.tool === "point") {
    ask({ point: rounded(cursor) });
  } else if (corner) {
    finishBox(rounded(cursor), ask);
  } else {
    corner = rounded(cursor);
    announce("First corner. Move to the opposite one and press Enter.");
  }
}

/** @param {XY} xy @returns {XY} */
const rounded = ([x, y]) => [Math.round(x * 1e4) / 1e4, Math.round(y * 1e4) / 1e4];

function sketchCursor() {
  if (corner) sketchBox(corner, cursor);
  else byId("sketch").replaceChildren();
  const { width, height } = /** @type {import("./store.js").Picture} */ (state.picture);
  const [x, y] = [cursor[0] * width, cursor[1] * height];
  byId("sketch").append(
    svg("path", { class: "cross halo", d: `M${x} 0V${height}M0 ${y}H${width}` }),
    svg("path", { class: "cross", d: `M${x} 0V${height}M0 ${y}H${width}` }),
  );
}

/** @param {XY} a @param {XY} b */
function sketchBox(a, b) {
  const { width, height } = /** @type {import("./store.js").Picture} */ (state.picture);
  const [x0, y0, x1, y1] = boxOf(a, b);
  const place = { x: x0 * width, y: y0 * height, width: (x1 - x0) * width, height: (y1 - y0) * height };
  byId("sketch").replaceChildren(
    svg("rect", { class: "rubber halo", ...place }),
    svg("rect", { class: "rubber", ...place }),
  );
}
