// Workers and settings out of the gpu_config.json of ComfyUI-Distributed: looked at first, then taken over.
import { button } from "./dialog.js";
import { h } from "./dom.js";
import { inPageWords } from "./page_words.js";
import { T } from "./texts.js";

/**
 * @typedef {import("./api_types.js").Imported} Imported
 */

/** @param {import("./panel.js").Panel} panel */
export function openImport(panel) {
  let text = "";
  /** @type {Imported | null} */
  let found = null;
  /** @type {any} */
  let failure = null;

  async function look(/** @type {boolean} */ dry_run) {
    await panel.act("import", async () => {
      try {
        failure = null;
        found = await panel.server.change("POST", "import", { text, dry_run });
        return dry_run ? undefined : T.imported(Object.keys(found?.workers ?? {}).length);
      } catch (error) {
        failure = error;
        return undefined;
      }
    });
  }

  async function read(/** @type {Event} */ event) {
    const file = /** @type {HTMLInputElement} */ (event.target).files?.[0];
    if (!file) return;
    text = await file.text();
    await look(true);
  }

  panel.dialog.open({
    title: T.import,
    content: () => [
      h("p", null, T.importWords),
      h("input", { type: "file", accept: ".json,application/json", "aria-label": T.importFile, onchange: read }),
      failure &&
        h(
          "div",
          { key: "failure", class: "banner bad", role: "alert" },
          h("p", null, failure.message),
          failure.remedy && h("p", null, failure.remedy),
        ),
      found && foundView(found),
      found?.dry_run &&
        h(
          "div",
          { key: "send", class: "row end" },
          button(T.importNow, () => look(false), {
            class: "first",
            disabled: panel.busy.has("import"),
            "data-action": "import-now",
          }),
        ),
    ],
  });
}

/** @param {Imported} found */
function foundView({ workers, options, dropped, dry_run }) {
  const names = Object.entries(workers);
  return h(
    "div",
    { key: "found" },
    h("h3", null, dry_run ? T.importWould(names.length) : T.importDone(names.length)),
    h(
      "ul",
      null,
      names.map(([name, fields]) => h("li", { key: name }, h("strong", null, name), ` ${deviceOf(fields)}`)),
    ),
    Object.keys(options).length > 0 &&
      h(
        "p",
        null,
        T.importOptions(
          Object.entries(options)
            .map(([name, value]) => `${name}: ${value}`)
            .join(", "),
        ),
      ),
    dropped.length > 0 && [
      h("h3", { key: "dropped" }, T.importDropped),
      h(
        "ul",
        { key: "list" },
        dropped.map(({ place, why }) => h("li", { key: place }, h("code", null, place), " ", inPageWords(why))),
      ),
    ],
  );
}

/** @param {import("./api_types.js").WorkerFields} fields */
function deviceOf({ device, comfyui_args }) {
  const args = Array.isArray(comfyui_args) ? comfyui_args.join(" ") : (comfyui_args ?? "");
  return [Array.isArray(device) ? device.join(", ") : device, args].filter(Boolean).join(" · ");
}
