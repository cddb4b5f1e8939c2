/** The ways in for an image: file, drop, paste, address, camera, samples. */

import { address } from "./api.js";
import { setUpCamera } from "./camera.js";
import { byId, el, openDialog } from "./dom.js";
import { closePicture, openBlob, openUrl } from "./picture.js";
import { complain, hush } from "./problems.js";
import { on, state } from "./store.js";

const SAMPLES = [
  {
    file: "scene-07.png",
    title: "Circle, crescent and triangle",
    phrases: ["the large circle", "the small crescent", "the green triangle"],
  },
  {
    file: "scene-06.png",
    title: "Square and ellipse on noise",
    phrases: ["the large pink square", "the small ellipse"],
  },
  { file: "scene-04.png", title: "A hexagon", phrases: ["the hexagon"] },
];

/** @param {(phrase: string) => void} ask  what a suggested phrase does */
export function setUpIntake(ask) {
  byId("choose").addEventListener("click", () => byId("file").click());
  byId("file").addEventListener("change", (/** @type {any} */ event) => {
    openFile(event.target.files[0]);
    event.target.value = ""; // so that the same file can be chosen again
  });
  byId("change-image").addEventListener("click", () => {
    closePicture();
    byId("choose").focus();
  });
  setUpDrop();
  document.addEventListener("paste", (event) => {
    const file = [...(event.clipboardData?.files ?? [])].find(isImage);
    if (file) openFile(file);
  });
  setUpAddress();
  setUpCamera((blob) => attempt(() => openBlob(blob, "camera.jpg")));
  setUpSamples();
  on("picture", () => suggest(ask));
}

/** @param {File} file */
const isImage = (file) => file.type.startsWith("image/");

/** @param {File | undefined} file */
function openFile(file) {
  if (file) attempt(() => openBlob(file, file.name || "pasted.png"));
}

/** @param {() => Promise<void>} open */
async function attempt(open) {
  hush();
  try {
    await open();
    byId("phrase").focus({ preventScroll: true });
  } catch (error) {
    complain(error);
  }
}

function setUpDrop() {
  const drop = byId("drop");
  const carriesFile = (/** @type {DragEvent} */ event) =>
    event.dataTransfer?.types.includes("Files") ?? false;
  document.addEventListener("dragover", (event) => {
    if (!carriesFile(event)) return;
    event.preventDefault();
    drop.classList.add("over");
  });
  document.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) drop.classList.remove("over");
  });
  document.addEventListener("drop", (event) => {
    if (!carriesFile(event)) return;
    event.preventDefault();
    drop.classList.remove("over");
    openFile(event.dataTransfer?.files[0]);
  });
}

function setUpAddress() {
  const dialog = byId("url-dialog");
  const problem = byId("url-problem");
  byId("url-button").addEventListener("click", () => {
    problem.textContent = "";
    openDialog(dialog);
  });
  byId("url-form").addEventListener("submit", async (/** @type {Event} */ event) => {
    event.preventDefault();
    problem.textContent = "";
    try {
      await openUrl(byId("url-input").value.trim());
      dialog.close();
      byId("phrase").focus({ preventScroll: true });
    } catch (error) {
      problem.textContent = /** @type {Error} */ (error).message;
    }
  });
}

function setUpSamples() {
  for (const sample of SAMPLES) {
    const source = address(`playground/samples/${sample.file}`);
    const open = () =>
      attempt(async () => openBlob(await (await fetch(source)).blob(), sample.file));
    const image = el("img", { src: source, alt: "", width: 132, height: 132, loading: "lazy" });
    const button = el("button", { type: "button", click: open }, image, el("span", {}, sample.title));
    byId("samples").append(el("li", {}, button));
  }
}

/** Phrases that fit the sample on show. @param {(phrase: string) => void} ask */
function suggest(ask) {
  const row = byId("suggestions");
  const sample = SAMPLES.find((one) => one.file === state.picture?.name);
  const phrases = sample ? sample.phrases : [];
  const all = phrases.length > 1 ? [...phrases, phrases.join("; ")] : phrases;
  row.replaceChildren(
    ...all.map((phrase) => {
      const text = phrase.includes(";") ? "all of them" : phrase;
      return el("button", { type: "button", class: "chip", click: () => ask(phrase) }, text);
    }),
  );
  row.hidden = phrases.length === 0;
}
