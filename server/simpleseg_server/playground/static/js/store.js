/**
 * What the page knows, and who wants to hear of changes.
 *
 * @typedef {[number, number]} XY  x first, in [0, 1] of the displayed image
 * @typedef {{text?: string, point?: XY, box?: [number, number, number, number]}} Prompt
 * @typedef {object} Picture
 * @property {string} name  a file name
 * @property {Blob | null} blob  the file; null where only the server has it
 * @property {string | null} url  what the server was told to fetch
 * @property {string} source  an object URL to show
 * @property {number} width  pixels
 * @property {number} height
 * @property {string | null} id  under which the server keeps it
 * @typedef {"waiting" | "drawing" | "ok" | "empty" | "truncated" | "invalid" | "stopped" | "failed"} Status
 * @typedef {object} Item  one object that was asked for
 * @property {number} id
 * @property {Prompt} prompt
 * @property {string} label
 * @property {number} colour  index of its colour
 * @property {Status} status
 * @property {XY[][]} polygons  as shown; replaced, never changed in place
 * @property {XY[][] | null} original  as the model wrote them, once it is done
 * @property {XY[][][]} past  earlier states, for undo
 * @property {boolean} hidden
 * @property {any} result  the API's result
 * @property {Run} run
 * @typedef {object} Run  one request
 * @property {Prompt[]} prompts
 * @property {boolean} refine
 * @property {any} response  of the API, at the end
 * @property {number} wallMs  until the last byte came
 * @property {AbortController} stop
 */

export const COLOURS = 8;

const bus = new EventTarget();

export const state = {
  /** @type {Picture | null} */ picture: null,
  /** @type {Item[]} */ items: [],
  /** @type {Item | null} */ selected: null,
  /** @type {Item | null} */ hovered: null,
  /** @type {"select" | "point" | "box"} */ tool: "select",
  /** @type {Run | null} */ run: null,
  opacity: 0.35,
  /** @type {{needs_key: boolean, max_prompts: number, max_image_bytes: number, version: string} | null} */
  config: null,
};

let lastId = 0;

/**
 * Hear of changes: "picture", "items" (which there are), "item" (one of them, in `detail`),
 * "selection", "hover", "tool", "run", "opacity", "edit" (an item's polygons, by hand).
 * @param {string} names  separated by spaces
 * @param {(detail: any) => void} heard
 */
export function on(names, heard) {
  for (const name of names.split(" ")) {
    bus.addEventListener(name, (event) => heard(/** @type {CustomEvent} */ (event).detail));
  }
}

/** @param {string} name @param {any} [detail] */
export function tell(name, detail) {
  bus.dispatchEvent(new CustomEvent(name, { detail }));
}

/**
 * A new object under way.
 * @param {Prompt} prompt
 * @param {Run} run
 * @returns {Item}
 */
export function addItem(prompt, run) {
  const used = new Set(state.items.map((item) => item.colour));
  const free = [...Array(COLOURS).keys()].find((colour) => !used.has(colour));
  /** @type {Item} */
  const item = {
    id: ++lastId,
    prompt,
    label: prompt.text || "object",
    colour: free ?? lastId % COLOURS,
    status: "waiting",
    polygons: [],
    original: null,
    past: [],
    hidden: false,
    result: null,
    run,
  };
  state.items.push(item);
  tell("items");
  return item;
}

/** @param {Item} item */
export function removeItem(item) {
  state.items = state.items.filter((other) => other !== item);
  if (state.hovered === item) hover(null);
  if (state.selected === item) select(state.items.at(-1) ?? null);
  tell("items");
}

export function clearItems() {
  state.items = [];
  hover(null);
  select(null);
  tell("items");
}

/** @param {Item | null} item */
export function select(item) {
  if (state.selected === item) return;
  state.selected = item;
  tell("selection");
}

/** @param {Item | null} item */
export function hover(item) {
  if (state.hovered === item) return;
  state.hovered = item;
  tell("hover");
}

/** @param {"select" | "point" | "box"} tool */
export function setTool(tool) {
  state.tool = tool;
  tell("tool");
}

/**
 * Put corrected polygons in place of an item's. `keep` remembers the state before, for undo.
 * @param {Item} item
 * @param {XY[][]} polygons
 * @param {boolean} [keep]
 */
export function edit(item, polygons, keep = true) {
  if (keep) item.past.push(item.polygons);
  item.polygons = polygons;
  tell("edit", item);
  tell("item", item);
}

/** @param {Item} item */
export function undo(item) {
  const before = item.past.pop();
  if (before) edit(item, before, false);
}

/** @param {Item} item */
export const isEdited = (item) => item.past.length > 0 && item.polygons !== item.original;

/** @param {Item} item */
export const isDone = (item) => item.status !== "waiting" && item.status !== "drawing";

/** @param {XY[][]} polygons */
export const vertexCount = (polygons) => polygons.reduce((sum, ring) => sum + ring.length, 0);

/**
 * What to call a prompt in a list.
 * @param {Prompt} prompt
 * @param {Picture | null} picture
 */
export function describe(prompt, picture) {
  const [width, height] = picture ? [picture.width, picture.height] : [1, 1];
  const px = (/** @type {number} */ x, /** @type {number} */ y) =>
    `${Math.round(x * width)}, ${Math.round(y * height)}`;
  const where = [];
  if (prompt.point) where.push(`Point ${px(...prompt.point)}`);
  if (prompt.box) {
    where.push(`Box ${px(prompt.box[0], prompt.box[1])} to ${px(prompt.box[2], prompt.box[3])}`);
  }
  return { title: prompt.text || where[0] || "object", where: prompt.text ? where.join(", ") : "" };
}
