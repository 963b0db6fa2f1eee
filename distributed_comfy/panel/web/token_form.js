// Where the server refuses the token, or there is none: the place to type it.
import { commandBox } from "./copy.js";
import { h } from "./dom.js";
import { T } from "./texts.js";

/**
 * @param {"page" | "comfyui"} kind
 * @param {(token: string) => void} use
 * @param {boolean} wasRefused whether there is one, which is not right
 */
export function tokenForm(kind, use, wasRefused) {
  return h(
    "form",
    {
      onsubmit: (/** @type {Event} */ event) => {
        event.preventDefault();
        use(tokenIn(String(new FormData(/** @type {HTMLFormElement} */ (event.target)).get("token") ?? "").trim()));
      },
    },
    h("h2", null, T.tokenTitle),
    h("p", null, T.tokenWords[kind]),
    commandBox("distributed-comfy comfyui token"),
    h(
      "div",
      { class: "row wrap" },
      h("input", { type: "password", name: "token", class: "grow", "aria-label": T.tokenLabel, autocomplete: "off", required: true }),
      h("button", { type: "submit", class: "first" }, T.tokenUse),
    ),
    wasRefused && h("p", { key: "refused", class: "reason red", role: "alert" }, T.tokenRefused),
  );
}

/**
 * The token in an address, or the text itself.
 * @param {string} text
 */
export function tokenIn(text) {
  return new URLSearchParams(text.split("#")[1] ?? "").get("token") ?? text;
}
