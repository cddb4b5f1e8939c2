/** The server's API: requests with the key, refusals in words, streams as events. */

import { events } from "./sse.js";
import { Failure, failureOf, unreachable } from "./words.js";

const KEY = "simpleseg-api-key";

let key = readKey();

function readKey() {
  try {
    return sessionStorage.getItem(KEY) ?? "";
  } catch {
    return ""; // storage is switched off: the key then lives in memory only
  }
}

/** Whether there is a key in this tab. */
export const hasKey = () => key !== "";

/**
 * Use a key from now on, in this tab only; "" forgets it.
 * @param {string} value
 */
export function useKey(value) {
  key = value.trim();
  try {
    if (key) sessionStorage.setItem(KEY, key);
    else sessionStorage.removeItem(KEY);
  } catch {
    // memory holds it
  }
}

/** @param {string} path  relative to the page, so that a proxy may serve it under a prefix */
export const address = (path) => new URL(path, document.baseURI).href;

/**
 * The response to a request. Throws a Failure, or the AbortError of `signal`.
 * @param {string} path
 * @param {{method?: string, json?: any, body?: any, signal?: AbortSignal}} [options]
 */
export async function call(path, { method = "GET", json, body, signal } = {}) {
  /** @type {Record<string, string>} */
  const headers = key ? { Authorization: `Bearer ${key}` } : {};
  if (json !== undefined) headers["Content-Type"] = "application/json";
  const sent = json === undefined ? body : JSON.stringify(json);
  let response;
  try {
    response = await fetch(address(path), { method, headers, body: sent, signal, cache: "no-store" });
  } catch (error) {
    throw isAbort(error) ? error : unreachable();
  }
  if (response.ok) return response;
  throw failureOf(await errorOf(response), response.status);
}

/** @param {Response} response */
async function errorOf(response) {
  try {
    return (await response.json()).error;
  } catch {
    return null; // not from our server: a proxy's page perhaps
  }
}

/** @param {any} error */
export const isAbort = (error) => error?.name === "AbortError";

/**
 * The fields of a request that say which image: its id, once the server keeps it.
 * @param {import("./store.js").Picture} picture
 * @param {AbortSignal} [signal]
 */
async function keep(picture, signal) {
  if (picture.id) return;
  let request;
  if (picture.blob) {
    const body = new FormData();
    body.set("image", picture.blob, picture.name);
    request = { method: "POST", body, signal };
  } else {
    request = { method: "POST", json: { image: { url: picture.url } }, signal };
  }
  picture.id = (await (await call("v1/images", request)).json()).id;
}

/**
 * Let the server fetch an image.
 * @param {string} url
 * @returns {Promise<{id: string, blob: Blob}>}
 */
export async function fetchThroughServer(url) {
  const kept = await call("v1/images", { method: "POST", json: { image: { url } } });
  const { id } = await kept.json();
  const file = await call(`playground/images/${encodeURIComponent(id)}`);
  return { id, blob: await file.blob() };
}

/**
 * Ask about an image; yields the events of the stream. The image is uploaded once; where the server
 * has forgotten it, the file goes with the request, and the next one uploads it again.
 * @param {import("./store.js").Picture} picture
 * @param {Record<string, any>} fields
 * @param {AbortSignal} signal
 */
export async function* segment(picture, fields, signal) {
  const asked = { ...fields, stream: true };
  let response;
  try {
    await keep(picture, signal);
    const json = { ...asked, image: { id: picture.id } };
    response = await call("segment", { method: "POST", json, signal });
  } catch (error) {
    // Forgotten, or larger than the room that the server keeps for images.
    const codes = picture.id ? ["image_not_found"] : ["image_too_large"];
    if (!(error instanceof Failure && codes.includes(error.code))) throw error;
    picture.id = null;
    response = await call("segment", { method: "POST", signal, ...withFile(picture, asked) });
  }
  yield* eventsOf(response);
}

/** @param {import("./store.js").Picture} picture @param {Record<string, any>} fields */
function withFile(picture, fields) {
  if (!picture.blob) return { json: { ...fields, image: { url: picture.url } } };
  const body = new FormData();
  body.set("image", picture.blob, picture.name);
  for (const [name, value] of Object.entries(fields)) {
    if (name === "include") for (const one of value) body.append(name, one);
    else body.set(name, typeof value === "string" ? value : JSON.stringify(value));
  }
  return { body };
}

/** @param {Response} response */
async function* eventsOf(response) {
  let ended = false;
  try {
    for await (const { event, data } of events(/** @type {any} */ (response.body))) {
      if (data === "[DONE]") ended = true;
      else if (event === "error") throw failureOf(JSON.parse(data).error, 200);
      else yield JSON.parse(data);
    }
  } catch (error) {
    if (error instanceof Failure || isAbort(error)) throw error;
    throw new Failure("broken", "The connection broke off. What had come is shown.");
  }
  if (!ended) throw new Failure("broken", "The answer broke off. What had come is shown.");
}
