// Words of the sidebar's tab and of the question for the token; all else that the tab shows has its words with the panel.

export const T = {
  title: "Distributed",
  tooltip: "Distributed Comfy: workers and jobs",
  notLoaded: (/** @type {string} */ why) => `The panel cannot be loaded: ${why}`,
  askToken: "Token of distributed-comfy (on ComfyUI's host, `distributed-comfy comfyui token` prints it):",
  noAnswer: "ComfyUI does not answer. See whether it still runs.",
};
