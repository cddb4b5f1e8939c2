/** The API's refusals in words for people. */

/** @type {Record<string, string>} */
const WORDS = {
  overloaded: "The server is busy: its queue is full.",
  queue_timeout: "The server is busy: no answer was begun in time.",
  engine_unavailable: "The model is not ready.",
  draining: "The server is shutting down.",
  internal_error: "The server failed. Its log has more, by the request's id.",
  invalid_api_key: "This server needs a valid API key.",
  rate_limit_exceeded: "This API key has used up what it may ask for now.",
  payload_too_large: "The file is larger than the server takes.",
  image_too_large: "The image file is larger than the server takes.",
  image_too_many_pixels: "The image has more pixels than the server takes.",
  image_type_unsupported: "The server does not read this type of image.",
  image_decode_failed: "The image is damaged.",
  image_truncated: "The image is incomplete.",
  image_empty: "The image file is empty.",
  image_not_found: "The server no longer has this image. Open it again.",
  image_url_invalid: "The server cannot read this address.",
  image_url_blocked: "The server does not fetch this address. Unless its operator allows it, it fetches none.",
  image_fetch_failed: "The server could not fetch the image.",
  image_fetch_timeout: "The image did not come in time from this address.",
  too_many_redirects: "The address leads from one to the next without end.",
  too_many_prompts: "These are more phrases than the server takes at once.",
  task_unsupported: "The model cannot do this.",
  prompt_empty: "The phrase is empty.",
  prompt_too_long: "The phrase is too long.",
  box_degenerate: "The box has no area. Drag a larger one.",
  outline_too_complex: "The outlines cross too often for this format. The mask can hold them.",
};

/** An answer that says no, or no answer. `message` is in words; `request` finds it in the log. */
export class Failure extends Error {
  /**
   * @param {string} code
   * @param {string} message
   * @param {{status?: number, request?: string, detail?: string}} [more]
   */
  constructor(code, message, more = {}) {
    super(message);
    this.code = code;
    this.status = more.status ?? 0;
    this.request = more.request ?? "";
    this.detail = more.detail ?? "";
  }
}

/**
 * The body of a refusal as a Failure.
 * @param {any} error  the API's `error` object
 * @param {number} [status]
 */
export function failureOf(error, status = 0) {
  const code = String(error?.code ?? "unknown");
  const said = String(error?.message ?? "");
  const wait = Number(error?.retry_after_ms);
  let message = WORDS[code] ?? sentence(said || `The server answered ${status}.`);
  if (wait > 0) message += ` Try again in ${Math.ceil(wait / 1000)} s.`;
  const detail = code in WORDS && said ? sentence(said) : "";
  return new Failure(code, message, { status, request: error?.request_id, detail });
}

/** Nobody answered. */
export const unreachable = () =>
  new Failure("unreachable", "The server cannot be reached. Is it running?");

/** @param {string} text */
function sentence(text) {
  const begun = text.charAt(0).toUpperCase() + text.slice(1);
  return /[.!?]$/.test(begun) ? begun : `${begun}.`;
}

/** @type {Record<string, [string, string]>} */
export const STATUS = {
  waiting: ["Waiting", "The model has not begun."],
  drawing: ["Drawing", "The model is writing the outline."],
  ok: ["Found", "The model wrote a whole outline."],
  empty: ["Not there", "The model says that the object is not in the image."],
  truncated: ["Cut short", "The answer ended early; what is whole is shown."],
  invalid: ["No answer", "The model gave no usable outline."],
  stopped: ["Stopped", "You stopped it; what had come is shown."],
  failed: ["Failed", "No answer came."],
};

/** What kind of score it is, and what that means. */
/** @type {Record<string, [string, string]>} */
export const SCORE = {
  expected_iou: ["expected IoU", "The overlap with the true area that is to be expected."],
  sample_agreement: ["agreement", "How well several answers agree."],
  geometric_mean_coordinate_token_probability: ["probability", "Mean probability of the coordinates."],
  geometric_mean_token_probability: ["probability", "Mean probability of the tokens."],
};
