// The panel as a tab of ComfyUI's sidebar.  Its modules are those of the page at /distributed/v2/ui/, loaded when the tab is first opened.
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { givenToken, keepToken, keptToken } from "./requests.js";
import { T } from "./texts.js";

const MODULES = "/distributed/v2/ui/";

/**
 * The panel that is open; null while the tab is closed.
 * @type {{end(): void} | null}
 */
let opened = null;

app.registerExtension({
  name: "distributed-comfy.sidebar",
  setup() {
    app.extensionManager.registerSidebarTab({
      id: "distributed-comfy",
      icon: "pi pi-sitemap",
      title: T.title,
      tooltip: T.tooltip,
      type: "custom",
      render: (place) => void open(place),
      destroy: close,
    });
  },
});

/** @param {HTMLElement} place */
async function open(place) {
  close();
  const home = document.createElement("div");
  home.className = "distributed-comfy-panel";
  place.replaceChildren(home);
  home.style.height = `calc(100dvh - ${Math.round(home.getBoundingClientRect().top)}px)`; // what is around it has no height of its own
  const address = new URL(api.fileURL(MODULES), location.href);
  try {
    const [{ Panel }, { Server }] = await Promise.all([import(`${address}panel.js`), import(`${address}requests.js`)]);
    if (!home.isConnected) return;
    const tokens = { get: async () => keptToken() || givenToken(), renew: givenToken };
    const server = new Server(new URL("../", address), tokens);
    const panel = new Panel(home, { server, kind: "comfyui", useToken });
    opened = panel;

    /** @param {string} typed */
    function useToken(typed) {
      keepToken(typed);
      panel.store.again();
    }
  } catch (error) {
    home.textContent = T.notLoaded(/** @type {Error} */ (error).message);
  }
}

function close() {
  opened?.end();
  opened = null;
}
