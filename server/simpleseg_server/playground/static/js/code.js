/** A run as code to copy. */

import { address } from "./api.js";
import { announce, copyText, el } from "./dom.js";
import { curl, javascript, python } from "./snippets.js";
import { state } from "./store.js";

/** @type {Record<string, (asked: import("./snippets.js").Asked) => string>} */
const LANGUAGES = { curl, Python: python, JavaScript: javascript };

let language = "curl";

/** @param {Element} pane @param {import("./store.js").Run} run */
export function showCode(pane, run) {
  const { picture } = state;
  if (!picture) return;
  const text = LANGUAGES[language]({
    base: address("").replace(/\/$/, ""),
    file: picture.name,
    url: picture.url,
    prompts: run.prompts,
    refine: run.refine,
    keyed: state.config?.needs_key ?? false,
  });
  const choices = Object.keys(LANGUAGES).map((name) => {
    const input = el("input", { type: "radio", name: "language", value: name });
    input.checked = name === language;
    input.addEventListener("change", () => {
      language = name;
      showCode(pane, run);
      /** @type {any} */ (pane.querySelector(`input[value="${name}"]`)).focus();
    });
    return el("label", {}, input, el("span", {}, name));
  });
  const copy = el("button", { type: "button", class: "quiet small", id: "copy-code" }, "Copy");
  copy.addEventListener("click", async () => {
    const done = await copyText(text);
    copy.textContent = done ? "Copied" : "Select it by hand";
    announce(done ? `Copied the request as ${language}.` : "Copying is not allowed.");
  });
  pane.replaceChildren(
    el(
      "div",
      { class: "code-head" },
      el("fieldset", { class: "segments small" }, el("legend", { class: "hidden" }, "Language"), ...choices),
      copy,
    ),
    el("pre", { class: "code", tabindex: "0", "aria-label": `The request as ${language}` }, text),
  );
}
