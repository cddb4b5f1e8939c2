/** Opening an image: from a file, or through the server from an address. */

import { fetchThroughServer } from "./api.js";
import { announce } from "./dom.js";
import { clearItems, state, tell } from "./store.js";
import { Failure } from "./words.js";

/** @typedef {import("./store.js").Picture} Picture */

/**
 * Show a file. Throws a Failure where it is no image that this browser can show.
 * @param {Blob} blob
 * @param {string} name
 * @param {Partial<Picture>} [known]
 */
export async function openBlob(blob, name, known = {}) {
  const limit = state.config?.max_image_bytes;
  if (limit && blob.size > limit) {
    const mib = (/** @type {number} */ bytes) => Math.ceil((bytes / 2 ** 20) * 10) / 10;
    throw new Failure("too_large", `The file has ${mib(blob.size)} MiB; the server takes ${mib(limit)}.`);
  }
  const source = URL.createObjectURL(blob);
  try {
    const { width, height } = await measured(source);
    show({ name, blob, url: null, source, width, height, id: null, ...known });
  } catch (error) {
    URL.revokeObjectURL(source);
    throw error;
  }
}

/**
 * Show what is at an address: a data URL is read here, any other by the server, since the page may
 * load nothing from elsewhere.
 * @param {string} url
 */
export async function openUrl(url) {
  if (/^data:/i.test(url)) return openBlob(dataUrlBlob(url), "image");
  const { id, blob } = await fetchThroughServer(url);
  return openBlob(blob, nameIn(url), { id, url, blob: null });
}

/** @param {string} url @returns {Blob} */
function dataUrlBlob(url) {
  const match = /^data:(image\/[\w.+-]+);base64,([\w+/=\s]+)$/i.exec(url);
  try {
    if (!match) throw new Error("another form");
    const bytes = Uint8Array.from(atob(match[2]), (letter) => letter.charCodeAt(0));
    return new Blob([bytes], { type: match[1] });
  } catch {
    throw new Failure("bad_data_url", "A data URL must read data:image/…;base64,…");
  }
}

/** @param {string} url */
function nameIn(url) {
  try {
    return decodeURIComponent(new URL(url).pathname.split("/").pop() || "image");
  } catch {
    return "image";
  }
}

/** @param {string} source @returns {Promise<{width: number, height: number}>} */
async function measured(source) {
  const image = new Image();
  image.src = source;
  try {
    await image.decode();
  } catch {
    throw new Failure("not_an_image", "This is not an image that the browser can show.");
  }
  return { width: image.naturalWidth, height: image.naturalHeight };
}

/** @param {Picture} picture */
function show(picture) {
  state.run?.stop.abort();
  if (state.picture) URL.revokeObjectURL(state.picture.source);
  state.picture = picture;
  clearItems();
  tell("picture");
  announce(`Opened ${picture.name}, ${picture.width} by ${picture.height} pixels.`);
}

/** Back to the page's beginning. */
export function closePicture() {
  state.run?.stop.abort();
  if (state.picture) URL.revokeObjectURL(state.picture.source);
  state.picture = null;
  clearItems();
  tell("picture");
}
