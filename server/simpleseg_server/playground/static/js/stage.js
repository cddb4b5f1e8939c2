/** The picture on its stage: what is shown, how large, and with which tool. */

import { byId, clamp } from "./dom.js";
import { on, setTool, state, tell } from "./store.js";

const stage = byId("stage");
const canvas = byId("canvas");
const frame = byId("frame");
const MARGIN_PX = 24;
const MAX_ZOOM = 16;

let zoom = 1;

export function setUpStage() {
  on("picture", showPicture);
  on("tool", showTool);
  for (const radio of document.querySelectorAll("input[name=tool]")) {
    radio.addEventListener("change", (/** @type {any} */ event) => setTool(event.target.value));
  }
  byId("opacity").addEventListener("input", (/** @type {any} */ event) => {
    state.opacity = Number(event.target.value) / 100;
    tell("opacity");
  });
  byId("zoom-in").addEventListener("click", () => zoomTo(zoom * 1.5));
  byId("zoom-out").addEventListener("click", () => zoomTo(zoom / 1.5));
  byId("zoom-fit").addEventListener("click", () => zoomTo(1));
  canvas.addEventListener("wheel", onWheel, { passive: false });
  new ResizeObserver(() => layOut()).observe(stage);
}

function showPicture() {
  const { picture } = state;
  for (const id of ["bar", "canvas"]) byId(id).hidden = !picture;
  byId("welcome").hidden = Boolean(picture);
  document.body.classList.toggle("has-picture", Boolean(picture));
  const image = byId("image");
  if (!picture) {
    image.removeAttribute("src");
    return;
  }
  image.src = picture.source;
  byId("file-name").textContent = `${picture.name}  ${picture.width} × ${picture.height}`;
  canvas.setAttribute("aria-label", `Image ${picture.name}`);
  setTool("select");
  zoomTo(1);
}

function showTool() {
  canvas.dataset.tool = state.tool;
  for (const radio of document.querySelectorAll("input[name=tool]")) {
    const input = /** @type {HTMLInputElement} */ (radio);
    input.checked = input.value === state.tool;
  }
}

/** @param {WheelEvent} event  with Ctrl, which is also what a pinch on a touchpad sends */
function onWheel(event) {
  if (!event.ctrlKey) return;
  event.preventDefault();
  zoomTo(zoom * Math.exp(-event.deltaY / 200), event);
}

/**
 * @param {number} wanted  1 fits the picture to the stage
 * @param {{clientX: number, clientY: number}} [around]  what stays where it is
 */
function zoomTo(wanted, around) {
  const before = frame.getBoundingClientRect();
  const view = canvas.getBoundingClientRect();
  const x = around?.clientX ?? view.left + view.width / 2;
  const y = around?.clientY ?? view.top + view.height / 2;
  zoom = clamp(wanted, 1, MAX_ZOOM);
  layOut();
  if (before.width === 0) return;
  const after = frame.getBoundingClientRect();
  canvas.scrollLeft += after.left + ((x - before.left) / before.width) * after.width - x;
  canvas.scrollTop += after.top + ((y - before.top) / before.height) * after.height - y;
}

function layOut() {
  const { picture } = state;
  if (!picture) return;
  const room = stage.getBoundingClientRect();
  const fit = Math.min(
    (room.width - 2 * MARGIN_PX) / picture.width,
    (room.height - 2 * MARGIN_PX) / picture.height,
  );
  const scale = Math.max(fit, 0.01) * zoom;
  frame.style.width = `${picture.width * scale}px`;
  frame.style.height = `${picture.height * scale}px`;
  frame.style.setProperty("--px", String(1 / scale)); // one pixel of the screen, in the picture's
  byId("zoom-fit").textContent = `${Math.round(scale * 100)}%`;
  tell("scale", 1 / scale);
}

/**
 * Where on the picture a pointer is.
 * @param {{clientX: number, clientY: number}} event
 * @returns {import("./store.js").XY}
 */
export function positionOf(event) {
  const box = byId("image").getBoundingClientRect();
  const share = (/** @type {number} */ value) => clamp(Math.round(value * 1e5) / 1e5, 0, 1);
  return [share((event.clientX - box.left) / box.width), share((event.clientY - box.top) / box.height)];
}
