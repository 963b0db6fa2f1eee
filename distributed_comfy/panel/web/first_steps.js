// What to do first, where there is no worker yet.
import { openAdd } from "./add_worker.js";
import { commandBox } from "./copy.js";
import { button } from "./dialog.js";
import { h } from "./dom.js";
import { T } from "./texts.js";

/**
 * @param {import("./panel.js").Panel} panel
 * @param {import("./store.js").State} state
 */
export function firstSteps(panel, state) {
  const hasAgent = Object.values(state.hosts).some((host) => host.here && !host.gone_ms);
  return h(
    "div",
    { key: "first-steps", class: "empty" },
    h("h2", null, T.noWorkers),
    h("p", null, T.noWorkersWords),
    h(
      "ol",
      null,
      !hasAgent && h("li", { key: "agent" }, h("p", null, T.startAgent), commandBox("distributed-comfy up")),
      hasAgent &&
        h(
          "li",
          { key: "add" },
          h("p", null, T.addHere),
          button(T.addWorker, () => openAdd(panel, "here"), { class: "first" }),
        ),
      h(
        "li",
        { key: "invite" },
        h("p", null, T.addElsewhere),
        button(T.addComputer, () => openAdd(panel, "network")),
      ),
    ),
  );
}
