/** A picture from the camera. */

import { byId, openDialog } from "./dom.js";

/** @param {(blob: Blob) => void} taken */
export function setUpCamera(taken) {
  const dialog = byId("camera-dialog");
  const video = byId("camera-video");
  const take = byId("camera-take");

  byId("camera-button").addEventListener("click", async () => {
    take.disabled = true;
    byId("camera-problem").textContent = "";
    openDialog(dialog);
    try {
      video.srcObject = await stream();
      await video.play();
      take.disabled = !dialog.open;
    } catch (error) {
      byId("camera-problem").textContent = reason(error);
    }
    if (!dialog.open) stop(video);
  });
  take.addEventListener("click", async () => {
    const blob = await frame(video);
    dialog.close();
    if (blob) taken(blob);
  });
  dialog.addEventListener("close", () => stop(video));
}

async function stream() {
  if (!navigator.mediaDevices) throw new DOMException("", "SecurityError");
  return navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
}

/** @param {any} video */
function stop(video) {
  for (const track of video.srcObject?.getTracks() ?? []) track.stop();
  video.srcObject = null;
}

/** @param {any} video @returns {Promise<Blob | null>} */
function frame(video) {
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [video.videoWidth, video.videoHeight];
  canvas.getContext("2d")?.drawImage(video, 0, 0);
  return new Promise((resolve) => canvas.toBlob(resolve, "image/jpeg", 0.95));
}

/** @param {any} error */
function reason(error) {
  const words = {
    NotAllowedError: "The browser was not allowed to use the camera.",
    NotFoundError: "There is no camera.",
    SecurityError: "Browsers give the camera only to pages over HTTPS or on this machine.",
  };
  return words[/** @type {keyof typeof words} */ (error.name)] ?? "The camera does not answer.";
}
