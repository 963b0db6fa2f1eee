// The extension of distributed-comfy in ComfyUI's page: what its nodes look like, its settings, and its logs in the console.
import { app } from "../../scripts/app.js";
import { showDividerOutputs } from "./dividers.js";
import { DebugLog } from "./debug_log.js";
import { showModelName } from "./model_name.js";
import { OPTION_SETTINGS, followOptions } from "./options.js";
import { watchOffer } from "./offer.js";
import { readOldUpscales } from "./old_files.js";
import { showItemValues } from "./item_values.js";

const debugLog = new DebugLog();

app.registerExtension({
  name: "distributed-comfy",
  settings: OPTION_SETTINGS,

  beforeRegisterNodeDef(nodeType, nodeData) {
    if (nodeData.name === "ImageBatchDivider" || nodeData.name === "AudioBatchDivider") showDividerOutputs(nodeType, nodeData);
    if (nodeData.name === "DistributedValue") showItemValues(nodeType);
    if (nodeData.name === "UltimateSDUpscaleDistributed") readOldUpscales(nodeType);
    if (nodeData.name === "DistributedModelName") showModelName(nodeType);
  },

  async setup() {
    await followOptions((options) => debugLog.turn(options.debug));
    await watchOffer();
  },
});
