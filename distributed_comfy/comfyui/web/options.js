// The pack's options in ComfyUI's settings dialog.  They are kept by the pack, so the dialog shows what that says.
import { app } from "../../scripts/app.js";
import { change, read } from "./requests.js";
import { tell } from "./toasts.js";

const PREFIX = "DistributedComfy.";
const LABELS = {
  participate: ["Take part in jobs here", "This ComfyUI runs items of its own jobs too; otherwise it only orchestrates."],
  auto_launch: ["Start workers with ComfyUI", "The workers of this host start with ComfyUI; otherwise they wait until they are asked for."],
  stop_workers: ["End workers with ComfyUI", "Workers that this ComfyUI started end with it."],
  debug: ["Detailed logs in the browser's console", "Worker status, distribution and traffic."],
};

/** @type {?Object<string, ?boolean>} */
let known = null;
/** Whether they were asked for: until then the dialog only repeats what it has kept itself. */
let asked = false;
const listeners = [];

export const OPTION_SETTINGS = [
  ...Object.entries(LABELS).map(([name, [label, tooltip]]) => ({
    id: PREFIX + name,
    category: ["Distributed Comfy", "Pack", label],
    name: label,
    tooltip,
    type: "boolean",
    defaultValue: name === "participate" || name === "stop_workers",
    onChange: (value) => setOption(name, value),
  })),
  {
    id: `${PREFIX}ordinary`,
    category: ["Distributed Comfy", "Pack", "Ordinary prompts on any GPU"],
    name: "Ordinary prompts on any GPU",
    tooltip: "Prompts without distributed nodes may run on any worker.",
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
    tell("warn", `The options cannot be read, so the settings may not show what holds: ${error.message}`);
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
    if (name in LABELS || name === "ordinary") await app.extensionManager.setting.set(PREFIX + name, shown);
  }
}
