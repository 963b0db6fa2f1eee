// Words of the sidebar's tab, the settings dialog and the questions; all that the tab itself shows has its words with the panel.

export const T = {
  title: "Distributed",
  tooltip: "Distributed Comfy: workers and jobs",
  notLoaded: (/** @type {string} */ why) => `The panel cannot be loaded: ${why}`,
  askToken: "Token of distributed-comfy (on ComfyUI's host, `distributed-comfy comfyui token` prints it):",
  noAnswer: "ComfyUI does not answer. See whether it still runs.",

  product: "Distributed Comfy",
  pack: "Pack",
  /** In the settings dialog: what each is called there, and what it does. */
  options: {
    participate: ["Take part in jobs here", "This ComfyUI runs items of its own jobs too; otherwise it only orchestrates."],
    auto_launch: ["Start workers with ComfyUI", "The workers of this host start with ComfyUI; otherwise they wait until they are asked for."],
    stop_workers: ["End workers with ComfyUI", "Workers that this ComfyUI started end with it."],
    debug: ["Detailed logs in the browser's console", "Worker status, distribution and traffic."],
  },
  ordinary: ["Ordinary prompts on any GPU", "Prompts without distributed nodes may run on any worker."],
  optionsUnread: (/** @type {string} */ why) => `The options cannot be read, so the settings may not show what holds: ${why}`,

  offerTitle: "Ordinary prompts on any GPU?",
  offerWords: (/** @type {number} */ workers) => [
    `${workers === 1 ? "A worker is there that" : `${workers} workers are there that`} could also run prompts without distributed nodes while this ComfyUI is busy.`,
    "Files, history and previews come here as ever. Settings > Distributed Comfy changes it at any time.",
  ],
  offerAnswers: { yes: "Yes", later: "Not now", never: "Never" },
  offerTaken: "Ordinary prompts run on any free worker from now on.",
};
