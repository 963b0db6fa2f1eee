// The page of its own, at `distributed-comfy serve`: the token comes with the address that the command has printed.
import { Panel } from "./panel.js";
import { Server } from "./requests.js";

const KEPT_AS = "distributed-comfy.token";

/** The token out of the address, which then loses it: addresses are copied and kept. */
function takeFromAddress() {
  const given = new URLSearchParams(location.hash.slice(1)).get("token");
  if (!given) return;
  sessionStorage.setItem(KEPT_AS, given);
  history.replaceState(null, "", location.pathname + location.search);
}

/** @param {string} token */
function useToken(token) {
  sessionStorage.setItem(KEPT_AS, token);
  panel.store.again();
}

takeFromAddress();
addEventListener("hashchange", () => {
  takeFromAddress();
  panel.store.again();
});
const get = async () => sessionStorage.getItem(KEPT_AS) ?? "";
const server = new Server(new URL("../", import.meta.url), { get, renew: get });
const panel = new Panel(/** @type {HTMLElement} */ (document.getElementById("panel")), { server, kind: "page", useToken });
