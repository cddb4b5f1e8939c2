/**
 * A request as code. Every text of a user is quoted for the language it goes into; the key is never
 * written out, it comes from the environment.
 *
 * @typedef {object} Asked
 * @property {string} base  the server's address, without a slash at its end
 * @property {string} file  the image's name
 * @property {string | null} url  the image's address, where the server fetched it
 * @property {import("./store.js").Prompt[]} prompts
 * @property {boolean} refine
 * @property {boolean} keyed  whether the server wants a key
 */

/** @param {string} text  for a POSIX shell */
export const shell = (text) => `'${text.replaceAll("'", `'\\''`)}'`;

/** @param {string} text  for Python and for JavaScript, whose strings JSON's are */
export const quoted = (text) => JSON.stringify(text).replace(/[\u007f-\uffff]/g, escape4);

/** @param {string} letter */
const escape4 = (letter) => `\\u${letter.charCodeAt(0).toString(16).padStart(4, "0")}`;

/** @param {Asked} asked */
function fields(asked) {
  return asked.refine ? { prompts: asked.prompts, refine: true } : { prompts: asked.prompts };
}

/** @param {Asked} asked */
export function curl(asked) {
  const lines = [`curl -s ${shell(`${asked.base}/segment`)}`];
  if (asked.keyed) lines.push(`-H "Authorization: Bearer $SIMPLESEG_API_KEY"`);
  if (asked.url) {
    const body = { image: { url: asked.url }, ...fields(asked) };
    lines.push(`-H 'Content-Type: application/json'`, `-d ${shell(JSON.stringify(body))}`);
  } else {
    const file = asked.file.replace(/["\\]/g, "\\$&");
    lines.push(`-F ${shell(`image=@"${file}"`)}`);
    lines.push(`--form-string ${shell(`prompts=${JSON.stringify(asked.prompts)}`)}`);
    if (asked.refine) lines.push("--form-string refine=true");
  }
  return lines.join(" \\\n    ");
}

/** @param {Asked} asked */
export function python(asked) {
  const source = asked.url ?? asked.file;
  const prompts = asked.prompts.map((prompt) => pythonPrompt(prompt));
  const imports = prompts.some((text) => text.startsWith("PromptItem"))
    ? "from simpleseg import SimpleSeg\nfrom simpleseg.schema import PromptItem"
    : "from simpleseg import SimpleSeg";
  const options = asked.refine ? ", refine=True" : "";
  const key = asked.keyed ? "  # the key comes from SIMPLESEG_API_KEY" : "";
  return [
    imports,
    "",
    `with SimpleSeg(${quoted(asked.base)}) as client:${key}`,
    `    results = client.segment(${quoted(source)}, [${prompts.join(", ")}]${options})`,
    "for result in results:",
    "    print(result.status, result.score, result.polygons)",
  ].join("\n");
}

/** @param {import("./store.js").Prompt} prompt */
function pythonPrompt(prompt) {
  if (prompt.text !== undefined && !prompt.point && !prompt.box) return quoted(prompt.text);
  const parts = [];
  if (prompt.text !== undefined) parts.push(`text=${quoted(prompt.text)}`);
  if (prompt.point) parts.push(`point=${JSON.stringify(prompt.point)}`);
  if (prompt.box) parts.push(`box=${JSON.stringify(prompt.box)}`);
  return `PromptItem(${parts.join(", ")})`;
}

/** For Node and, with a file of an `<input>`, for browsers. @param {Asked} asked */
export function javascript(asked) {
  const headers = asked.keyed
    ? "  headers: { Authorization: `Bearer ${process.env.SIMPLESEG_API_KEY}` },\n"
    : "";
  const head = asked.url ? [] : [`import { openAsBlob } from "node:fs";`, ""];
  let body = "form";
  let type = headers;
  if (asked.url) {
    const sent = { image: { url: asked.url }, ...fields(asked) };
    body = `JSON.stringify(${ascii(JSON.stringify(sent))})`;
    type = headers
      ? headers.replace("{ ", `{ "Content-Type": "application/json", `)
      : `  headers: { "Content-Type": "application/json" },\n`;
  } else {
    head.push("const form = new FormData();");
    head.push(`form.set("image", await openAsBlob(${quoted(asked.file)}), ${quoted(asked.file)});`);
    head.push(`form.set("prompts", JSON.stringify(${ascii(JSON.stringify(asked.prompts))}));`);
    if (asked.refine) head.push(`form.set("refine", "true");`);
  }
  return [
    ...head,
    `const answer = await fetch(${quoted(`${asked.base}/segment`)}, {`,
    `  method: "POST",\n${type}  body: ${body},`,
    "});",
    "const { results } = await answer.json();",
    "for (const { status, score, polygons } of results) console.log(status, score, polygons);",
  ].join("\n");
}

/** @param {string} json */
const ascii = (json) => json.replace(/[\u007f-\uffff]/g, escape4);
