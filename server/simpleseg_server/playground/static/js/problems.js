/** What went wrong, where everybody sees and hears it. */

import { byId, el } from "./dom.js";
import { Failure } from "./words.js";

let onNoKey = () => {};

/** @param {() => void} ask  what to do where a key is wanted */
export function whenKeyIsWanted(ask) {
  onNoKey = ask;
}

/**
 * Show a failure in words, and ask for the key where that is what is missing.
 * @param {any} error
 */
export function complain(error) {
  const failure = error instanceof Failure ? error : new Failure("bug", `Something went wrong: ${error?.message ?? error}`);
  const small = [failure.detail, failure.request && `Request ${failure.request}`].filter(Boolean);
  byId("alert").replaceChildren(
    el("p", {}, failure.message),
    small.length ? el("p", { class: "fine" }, small.join(" ")) : "",
    el("button", { type: "button", class: "quiet icon", "aria-label": "Dismiss", click: hush }, "×"),
  );
  if (failure.code === "invalid_api_key") onNoKey();
}

export function hush() {
  byId("alert").replaceChildren();
}
