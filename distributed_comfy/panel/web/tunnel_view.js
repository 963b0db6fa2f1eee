// The public address: open, close, and what is wrong with it.
import { button } from "./dialog.js";
import { h } from "./dom.js";
import { inPageWords } from "./page_words.js";
import { T } from "./texts.js";

/**
 * @param {import("./panel.js").Panel} panel
 * @param {import("./api_types.js").Tunnel} tunnel
 */
export function tunnelView(panel, { state, url, error }) {
  const change = (/** @type {"POST" | "DELETE"} */ method) =>
    panel.act("tunnel", async () => void (await panel.server.change(method, "tunnel")));
  const close = async () => {
    if (await panel.dialog.confirm({ title: T.closeTunnel, words: T.closeTunnelWords, action: T.closeTunnel })) await change("DELETE");
  };
  const isOpen = state === "open" || state === "opening" || state === "closing";
  return h(
    "div",
    { key: "tunnel", class: "tunnel" },
    h(
      "div",
      { class: "row wrap" },
      h(
        "p",
        { class: "grow", role: "status" },
        h("span", { "aria-hidden": "true", class: state === "open" ? "good" : "muted" }, state === "open" ? "● " : "○ "),
        T.tunnelStates[state],
        url && h("code", null, url),
      ),
      isOpen
        ? button(T.closeTunnel, close, { disabled: state === "closing" || panel.busy.has("tunnel"), "data-action": "close-tunnel" })
        : button(T.openTunnel, () => change("POST"), {
            class: "first",
            disabled: panel.busy.has("tunnel"),
            "data-action": "open-tunnel",
          }),
    ),
    error &&
      h(
        "div",
        { class: "banner bad", role: "alert" },
        h("p", null, inPageWords(error.message)),
        error.remedy && h("p", null, inPageWords(error.remedy)),
      ),
  );
}
