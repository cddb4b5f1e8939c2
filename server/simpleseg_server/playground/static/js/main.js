/** The page, put together. */

import { setUpChrome } from "./chrome.js";
import { byId } from "./dom.js";
import { setUpExports } from "./exports.js";
import { setUpInsight } from "./insight.js";
import { setUpIntake } from "./intake.js";
import { setUpObjects } from "./objects.js";
import { setUpOverlay } from "./overlay.js";
import { run, stopRun } from "./run.js";
import { setUpStage } from "./stage.js";
import { on, removeItem, state, tell } from "./store.js";
import { setUpTools } from "./tools.js";
import { setUpVertices } from "./vertices.js";

/** @typedef {import("./store.js").Prompt} Prompt */

const phrase = byId("phrase");

/** The phrases of a line, which semicolons separate. @param {string} line @returns {Prompt[]} */
function phrasesOf(line) {
  const texts = line.split(";").map((text) => text.trim());
  return texts.filter(Boolean).map((text) => ({ text }));
}

/** @param {Prompt[]} prompts */
const ask = (prompts) => run(prompts, byId("refine").checked);

/** A point or a box, together with the phrase that is in the field. @param {Prompt} prompt */
function askAt(prompt) {
  const text = phrase.value.trim();
  phrase.value = "";
  ask([text ? { text, ...prompt } : prompt]);
}

/** @param {Event} event */
function onSubmit(event) {
  event.preventDefault();
  const prompts = phrasesOf(phrase.value);
  if (prompts.length === 0 || !state.picture) return;
  phrase.value = "";
  ask(prompts);
}

function showRun() {
  const isRunning = state.run !== null;
  document.body.classList.toggle("running", isRunning);
  byId("canvas").setAttribute("aria-busy", String(isRunning));
  byId("stop").hidden = !isRunning;
  byId("run").hidden = isRunning;
}

setUpOverlay();
setUpStage();
setUpVertices();
setUpTools(askAt);
setUpObjects((item) => {
  removeItem(item);
  ask([item.prompt]);
});
setUpInsight();
setUpExports();
setUpIntake((line) => ask(phrasesOf(line)));
on("run", showRun);
on("picture", () => {
  byId("ask").hidden = !state.picture;
});
byId("ask").addEventListener("submit", onSubmit);
byId("stop").addEventListener("click", stopRun);
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !document.querySelector("dialog[open]")) stopRun();
});
tell("opacity");
tell("picture");
setUpChrome();
