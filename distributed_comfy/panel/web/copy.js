// A command to be copied, in a box with a button.
import { h } from "./dom.js";
import { T } from "./texts.js";

const SAID_MS = 2000;

/**
 * @param {string} command
 * @param {string} [label] what it is, for screen readers
 */
export function commandBox(command, label = T.command) {
  return h(
    "div",
    { key: command, class: "command" },
    h("code", { tabindex: 0, "aria-label": label }, command),
    h("button", {
      type: "button",
      class: "copy",
      "aria-live": "polite",
      own: (/** @type {HTMLElement} */ button) => offerCopy(button, command),
    }),
  );
}

/**
 * @param {HTMLElement} button
 * @param {string} text
 */
function offerCopy(button, text) {
  button.textContent = T.copy;
  button.addEventListener("click", async () => {
    button.textContent = (await toClipboard(text, button)) ? T.copied : T.copyByHand;
    setTimeout(() => (button.textContent = T.copy), SAID_MS);
  });
}

/**
 * Put text into the clipboard; where the browser allows that to secure pages only, select it.
 * @param {string} text
 * @param {HTMLElement} button
 */
async function toClipboard(text, button) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const code = button.parentElement?.querySelector("code");
    if (code) window.getSelection()?.selectAllChildren(code);
    return document.execCommand("copy");
  }
}
