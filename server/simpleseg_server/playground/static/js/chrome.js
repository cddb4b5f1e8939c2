/** What surrounds the work: the server's state, the key, light and dark. */

import { call, hasKey, useKey } from "./api.js";
import { announce, byId, openDialog } from "./dom.js";
import { hush, whenKeyIsWanted } from "./problems.js";
import { state } from "./store.js";

const THEMES = /** @type {const} */ ({
  system: ["◐", "as the system"],
  light: ["☀", "light"],
  dark: ["☾", "dark"],
});
const THEME = "simpleseg-theme";
const POLL_MS = 2000;

export async function setUpChrome() {
  setUpTheme();
  setUpKey();
  try {
    state.config = await (await call("playground/config.json")).json();
  } catch {
    // the line about the server says it
  }
  byId("key-button").hidden = !state.config?.needs_key;
  byId("docs-link").hidden = Boolean(state.config?.needs_key); // a link cannot bring the key
  showKey();
  await watchServer();
}

function setUpTheme() {
  const names = /** @type {(keyof typeof THEMES)[]} */ (Object.keys(THEMES));
  let name = /** @type {keyof typeof THEMES} */ (stored());
  if (!names.includes(name)) name = "system";
  const button = byId("theme-button");
  const show = () => {
    document.documentElement.dataset.theme = name;
    button.textContent = THEMES[name][0];
    button.setAttribute("aria-label", `Colours: ${THEMES[name][1]}`);
    button.title = `Colours: ${THEMES[name][1]}`;
  };
  button.addEventListener("click", () => {
    name = names[(names.indexOf(name) + 1) % names.length];
    try {
      localStorage.setItem(THEME, name);
    } catch {
      // it holds until the page is left
    }
    show();
    announce(`Colours: ${THEMES[name][1]}`);
  });
  show();
}

function stored() {
  try {
    return localStorage.getItem(THEME);
  } catch {
    return null;
  }
}

function setUpKey() {
  const dialog = byId("key-dialog");
  const open = () => {
    byId("key-input").value = "";
    byId("key-problem").textContent = "";
    byId("key-forget").hidden = !hasKey();
    if (!dialog.open) openDialog(dialog);
  };
  byId("key-button").addEventListener("click", open);
  whenKeyIsWanted(open);
  byId("key-forget").addEventListener("click", () => {
    useKey("");
    dialog.close();
    showKey();
  });
  byId("key-form").addEventListener("submit", (/** @type {Event} */ event) => {
    event.preventDefault();
    const value = byId("key-input").value.trim();
    if (!/^[!-~]{1,512}$/.test(value)) {
      byId("key-problem").textContent = "A key is 1 to 512 visible ASCII characters.";
      return;
    }
    useKey(value);
    hush();
    dialog.close();
    showKey();
  });
}

function showKey() {
  const button = byId("key-button");
  button.textContent = hasKey() ? "API key set" : "Enter API key";
  button.classList.toggle("wanted", !hasKey());
}

/** Say how the server is, until it is ready; then again whenever the page is looked at. */
async function watchServer() {
  const ready = await look();
  if (!ready) setTimeout(watchServer, POLL_MS);
}

document.addEventListener("visibilitychange", () => {
  if (document.visibilityState === "visible") look();
});

async function look() {
  const line = byId("server");
  let text;
  let health = "bad";
  try {
    const { model, engine } = await (await call("readyz")).json();
    [health, text] = ["good", [model, engine].filter(Boolean).join(" · ")];
  } catch (error) {
    const { code, message } = /** @type {any} */ (error);
    if (code === "engine_unavailable") [health, text] = ["busy", "The model is loading…"];
    else text = message;
  }
  line.dataset.health = health;
  if (byId("server-text").textContent !== text) byId("server-text").textContent = text;
  return health === "good";
}
