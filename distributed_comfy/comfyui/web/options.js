// The pack's options in ComfyUI's settings dialog.  They are kept by the pack, so the dialog shows what that says.
import { app } from "../../scripts/app.js";
import { change, read } from "./requests.js";
import { T } from "./texts.js";
import { tell } from "./toasts.js";

const PREFIX = "DistributedComfy.";

/** @type {?Object<string, ?boolean>} */
let known = null;
/** Whether they were asked for: until then the dialog only repeats what it has kept itself. */
let asked = false;
const listeners = [];

export const OPTION_SETTINGS = [
  ...Object.entries(T.options).map(([name, [label, tooltip]]) => ({
    id: PREFIX + name,
    category: [T.product, T.pack, label],
    name: label,
    tooltip,
    type: "boolean",
    defaultValue: name === "participate" || name === "stop_workers",
    onChange: (value) => setOption(name, value),
  })),
  {
    id: `${PREFIX}ordinary`,
    category: [T.product, T.pack, T.ordinary[0]],
    name: T.ordinary[0],
    tooltip: T.ordinary[1],
    type: "combo",
    options: ["ask", "yes", "no"],
    defaultValue: "ask",
    onChange: (value) => setOption("ordinary", { yes: true, no: false }[value] ?? null),
  },
];

/**
 * Call a function with the options, now and after each change.
 * @param {(options: Object<string, ?boolean>) => void} listener
 */
export async function followOptions(listener) {
  listeners.push(listener);
  try {
    take(await read("/distributed_comfy/options"));
    await show();
  } catch (error) {
    tell("warn", T.optionsUnread(error.message));
  } finally {
    asked = true;
  }
}

/**
 * Change an option; false where the user was told why that cannot be.
 * @param {string} name
 * @param {?boolean} value
 */
export async function setOption(name, value) {
  if (known === null ? !asked : known[name] === value) return true; // not asked yet, or it is we who show it
  try {
    take(await change("/distributed_comfy/options", { [name]: value }));
    return true;
  } catch (error) {
    tell("error", error.message);
    return false;
  } finally {
    if (known !== null) await show();
  }
}

function take(options) {
  known = options;
  for (const listener of listeners) listener(options);
}

async function show() {
  for (const [name, value] of Object.entries(known)) {
    const shown = name === "ordinary" ? { true: "yes", false: "no", null: "ask" }[String(value)] : value;
    if (name in T.options || name === "ordinary") await app.extensionManager.setting.set(PREFIX + name, shown);
  }
}
