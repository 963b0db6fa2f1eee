// The page of its own, at `distributed-comfy serve`: the token comes with the address that the command has printed.
import { h } from "./dom.js";
import { Panel } from "./panel.js";
import { Server } from "./requests.js";
import { T } from "./texts.js";

const KEPT_AS = "distributed-comfy.token";

/** The token out of the address, which then loses it: addresses are copied and kept. */
function takeFromAddress() {
  const given = new URLSearchParams(location.hash.slice(1)).get("token");
  if (!given) return;
  sessionStorage.setItem(KEPT_AS, given);
  history.replaceState(null, "", location.pathname + location.search);
}

/** @param {Event} event */
function useTyped(event) {
  event.preventDefault();
  const typed = new FormData(/** @type {HTMLFormElement} */ (event.target)).get("token");
  const text = String(typed ?? "").trim();
  sessionStorage.setItem(KEPT_AS, new URLSearchParams(text.split("#")[1] ?? "").get("token") ?? text);
  panel.store.again();
}

function askToken() {
  return h(
    "form",
    { onsubmit: useTyped },
    h("h2", null, T.tokenTitle),
    h("p", null, T.tokenWords),
    h(
      "div",
      { class: "row wrap" },
      h("input", { type: "password", name: "token", class: "grow", "aria-label": T.tokenLabel, autocomplete: "off", required: true }),
      h("button", { type: "submit", class: "first" }, T.tokenUse),
    ),
  );
}

takeFromAddress();
addEventListener("hashchange", () => {
  takeFromAddress();
  panel.store.again();
});
const get = async () => sessionStorage.getItem(KEPT_AS) ?? "";
const server = new Server(new URL("../", import.meta.url), { get, renew: get });
const panel = new Panel(/** @type {HTMLElement} */ (document.getElementById("panel")), { server, kind: "page", askToken });
