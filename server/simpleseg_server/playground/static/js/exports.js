/** The objects as files. What is exported is what is shown: corrected, and without what is hidden. */

import { call } from "./api.js";
import { announce, byId, download, el, svg } from "./dom.js";
import { pathOf } from "./overlay.js";
import { complain, hush } from "./problems.js";
import { isDone, on, state, vertexCount } from "./store.js";
import { Failure } from "./words.js";

/** @typedef {import("./store.js").Item} Item */

/** What the server writes, by the converters of its API: title and ending of the file's name. */
/** @type {Record<string, [string, string]>} */
const BY_SERVER = {
  coco: ["COCO", ".coco.json"],
  labelme: ["labelme", ".json"],
  label_studio: ["Label Studio", ".label-studio.json"],
  yolo: ["YOLO", ".txt"],
  geojson: ["GeoJSON", ".geojson"],
  mask: ["Mask PNG", ".mask.png"],
};

export function setUpExports() {
  const button = (/** @type {string} */ name, /** @type {string} */ title, /** @type {() => Promise<void>} */ act) =>
    el("button", { type: "button", class: "chip", "data-format": name, click: () => attempt(title, act) }, title);
  byId("formats").append(
    button("png", "PNG", exportPng),
    button("svg", "SVG", exportSvg),
    ...Object.entries(BY_SERVER).map(([name, [title, ending]]) =>
      button(name, title, () => exportByServer(name, ending)),
    ),
  );
  on("items item", () => {
    byId("export").hidden = exported().length === 0;
  });
}

/** @param {string} title @param {() => Promise<void>} act */
async function attempt(title, act) {
  hush();
  try {
    await act();
    announce(`Exported ${title}.`);
  } catch (error) {
    complain(error);
  }
}

function exported() {
  return state.items.filter(
    (item) => isDone(item) && !item.hidden && vertexCount(item.polygons) > 2,
  );
}

/** The file's name without its ending, safe for every file system. */
function stem() {
  const name = (state.picture?.name ?? "image").replace(/\.[^.]*$/, "");
  return name.replace(/[^\p{L}\p{N}._ -]+/gu, "_").slice(0, 80) || "image";
}

/** @param {string} format @param {string} ending */
async function exportByServer(format, ending) {
  const { name, width, height } = /** @type {import("./store.js").Picture} */ (state.picture);
  const objects = exported().map((item) => ({
    label: item.label,
    polygons: item.polygons,
    score: item.result?.score ?? null,
  }));
  const json = { format, file_name: name, width, height, objects };
  const file = await call("playground/export", { method: "POST", json });
  download(await file.blob(), stem() + ending);
}

/** The picture with the outlines painted in, at its full size. */
async function exportPng() {
  const { width, height } = /** @type {import("./store.js").Picture} */ (state.picture);
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [width, height];
  const brush = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
  brush.drawImage(byId("image"), 0, 0, width, height);
  brush.lineJoin = "round";
  brush.lineWidth = Math.max(2, Math.max(width, height) / 400);
  for (const item of exported()) {
    const path = new Path2D(pathOf(item));
    brush.fillStyle = brush.strokeStyle = colourOf(item);
    brush.globalAlpha = state.opacity;
    brush.fill(path);
    brush.globalAlpha = 1;
    brush.stroke(path);
  }
  /** @type {Blob | null} */
  const blob = await new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
  if (!blob) throw new Failure("canvas", "The picture is too large for this browser to paint.");
  download(blob, `${stem()}.overlay.png`);
}

/** The outlines alone, as large as the picture. */
async function exportSvg() {
  const { width, height } = /** @type {import("./store.js").Picture} */ (state.picture);
  const drawing = svg("svg", { width, height, viewBox: `0 0 ${width} ${height}` });
  for (const item of exported()) {
    const colour = colourOf(item);
    drawing.append(
      svg(
        "path",
        {
          d: pathOf(item),
          fill: colour,
          "fill-opacity": state.opacity,
          "fill-rule": "nonzero",
          stroke: colour,
          "stroke-width": 2,
          "stroke-linejoin": "round",
        },
        svg("title", {}, item.label.replace(/[^\t\n\r -\ud7ff\ue000-\ufffd]/g, "")),
      ),
    );
  }
  const text = new XMLSerializer().serializeToString(drawing);
  download(new Blob([text], { type: "image/svg+xml" }), `${stem()}.svg`);
}

/** @param {Item} item */
function colourOf(item) {
  const group = document.querySelector(`#shapes [data-item="${item.id}"]`);
  return group ? getComputedStyle(group).getPropertyValue("--colour").trim() : "#3d5afe";
}
