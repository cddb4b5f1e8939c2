/** About the run of the selected object: where the time went, how to ask it in code, what the model
 * wrote. */

import { showCode } from "./code.js";
import { byId, el } from "./dom.js";
import { isDone, on, state, vertexCount } from "./store.js";
import { showTiming } from "./timing.js";

const TABS = ["timing", "code", "raw"];

export function setUpInsight() {
  const tabs = TABS.map((name) => byId(`tab-${name}`));
  tabs.forEach((tab, index) => {
    tab.addEventListener("click", () => choose(index));
    tab.addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (!step) return;
      event.preventDefault();
      const next = (index + step + tabs.length) % tabs.length;
      choose(next);
      tabs[next].focus();
    });
  });
  on("selection run items", show);
  on("item", (item) => isDone(item) && show());
}

/** @param {number} chosen */
function choose(chosen) {
  TABS.forEach((name, index) => {
    byId(`tab-${name}`).setAttribute("aria-selected", String(index === chosen));
    byId(`tab-${name}`).setAttribute("tabindex", index === chosen ? "0" : "-1");
    byId(`pane-${name}`).hidden = index !== chosen;
  });
}

function show() {
  const item = state.selected ?? state.items.at(-1);
  byId("insight").hidden = !item;
  if (!item) return;
  const ofRun = state.items.filter((other) => other.run === item.run);
  showTiming(byId("pane-timing"), item.run, ofRun);
  showCode(byId("pane-code"), item.run);
  showRaw(ofRun);
}

/** @param {import("./store.js").Item[]} items */
function showRaw(items) {
  const blocks = items.map((item) => {
    const text = item.result?.raw_text;
    const told = text ?? (isDone(item) ? "None came." : "The text comes with the end of the answer.");
    const head = el("h3", { class: "fine" }, `${item.label} · ${vertexCount(item.original ?? [])} vertices`);
    return el("div", {}, head, el("pre", { class: "raw" }, told));
  });
  byId("pane-raw").replaceChildren(...blocks);
}
