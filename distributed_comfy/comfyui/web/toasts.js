// What the pack tells its user, in ComfyUI's own toasts.
import { app } from "../../scripts/app.js";

const LIFE_MS = 8000;

/**
 * @param {"success" | "warn" | "error"} severity
 * @param {string} detail
 */
export function tell(severity, detail) {
  app.extensionManager.toast.add({ severity, summary: "Distributed Comfy", detail, life: LIFE_MS });
}
