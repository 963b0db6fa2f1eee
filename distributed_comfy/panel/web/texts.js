// Every word of the panel.

const one = (/** @type {number} */ count, /** @type {string} */ single, /** @type {string} */ several) =>
  `${count} ${count === 1 ? single : several}`;

export const T = {
  product: "Distributed Comfy",
  loading: "Loading…",
  sections: { workers: "Workers", jobs: "Jobs", computer: "This computer", help: "Help" },
  masterSection: "Master",
  /** @param {{working: number, workers: number, running: number, waiting: number}} counts */
  summary: ({ working, workers, running, waiting }) =>
    workers
      ? `${working} of ${one(workers, "worker", "workers")} ready · ${one(running, "job runs", "jobs run")}, ${waiting} waiting`
      : "No worker yet",
  thingsWrong: (/** @type {number} */ count) => one(count, "thing is wrong", "things are wrong"),
  dismiss: "Dismiss",
  close: "Close",
  back: "Back",

  // -- the connection
  connection: { connecting: "Connecting…", open: "Live", broken: "Not connected", refused: "Token needed" },
  unreachable: "The server does not answer.",
  unreachableRemedy: "See whether it still runs: `distributed-comfy serve`, or ComfyUI.",
  unreadable: "The server said something that this page cannot read.",
  unreadableRemedy: "Load the page again; where that does not help, update Distributed Comfy and report it with the server's log.",
  slow: (/** @type {string} */ time) => `The server has not answered within ${time}.`,
  slowRemedy: "Close other tabs of this page: a browser keeps only a few connections to one server. An order may still be carried out.",
  refused: (/** @type {number} */ status, /** @type {string} */ words) => `The server refused this: ${status} ${words}`,
  lostServer: "What you see may be out of date.",
  lostServerRemedy: "This page tries again by itself.",
  tryNow: "Try now",
  redisDown: "Redis does not answer.",
  tokenTitle: "This page needs the token",
  tokenWords: {
    page: "Open the address that `distributed-comfy serve` has printed in its terminal. Where it has none, run this on its computer and paste what it prints:",
    comfyui: "A browser on ComfyUI's own computer gets it by itself. Elsewhere, run this on ComfyUI's computer and paste what it prints:",
  },
  tokenLabel: "Token",
  tokenUse: "Use it",
  tokenRefused: "The server refuses this token. Copy it once more: a new one is made where the old one was taken back.",

  // -- numbers
  seconds: (/** @type {string} */ count) => `${count} s`,
  minutes: (/** @type {number} */ minutes, /** @type {number} */ seconds) => (seconds ? `${minutes} min ${seconds} s` : `${minutes} min`),
  hours: (/** @type {number} */ hours, /** @type {number} */ minutes) => (minutes ? `${hours} h ${minutes} min` : `${hours} h`),
  days: (/** @type {number} */ days, /** @type {number} */ hours) =>
    hours ? `${one(days, "day", "days")} ${hours} h` : one(days, "day", "days"),
  bytes: (/** @type {string} */ count, /** @type {number} */ power) => `${count} ${["B", "KB", "MB", "GB", "TB"][power]}`,
  justNow: "just now",
  ago: (/** @type {string} */ time) => `${time} ago`,
  progress: "Progress",

  // -- workers
  workerStates: {
    disabled: "Off",
    stopped: "Stopped",
    failed: "Cannot start",
    "backing-off": "Starts again",
    starting: "Starting",
    idle: "Ready",
    busy: "Working",
    draining: "Finishing",
    drained: "Held back",
    down: "Engine restarts",
    stopping: "Stopping",
    lost: "No sign of life",
    unknown: "Unknown",
  },
  /** @type {Record<string, string>} */
  engines: { comfyui: "ComfyUI", builtin: "built-in engine, for tests", attach: "a running ComfyUI" },
  startsAgainIn: (/** @type {string} */ time) => `Starts again in ${time}`,
  cardLabel: (/** @type {string} */ name, /** @type {string} */ state) => `Worker ${name}: ${state}`,
  outdated: "Its settings, or the CPUs that it may use, have changed. Restart (in its menu ⋯) brings that.",
  vram: "VRAM",
  ram: "Memory",
  memoryOf: (/** @type {string} */ label, /** @type {string} */ used, /** @type {string} */ total) => `${label} ${used} of ${total}`.trim(),
  load: (/** @type {number} */ part, /** @type {boolean} */ isCpu) => `${isCpu ? "CPU" : "GPU"} ${part} % busy`,
  itemOf: (/** @type {number} */ index, /** @type {string} */ job) => `Item ${index} of ${job}`,
  itemKinds: { generate: "One seed", whole: "Whole prompt", prepare: "Image to upscale", tile: "Tile", last: "Final stage" },
  step: (/** @type {number} */ value, /** @type {number} */ maximum) => `step ${value} of ${maximum}`,
  shipping: "sending the result",
  previewOf: (/** @type {number} */ index) => `Preview of item ${index}`,
  itemsDone: (/** @type {number} */ count) => one(count, "item done", "items done"),
  itemsFailed: (/** @type {number} */ count) => one(count, "attempt failed", "attempts failed"),
  restarts: (/** @type {number} */ count) => one(count, "restart", "restarts"),
  guest: "takes items of its own jobs only",
  lastError: (/** @type {string} */ when) => `Last error, ${when}`,
  orders: {
    start: "Start",
    stop: "Stop",
    restart: "Restart",
    drain: "Finish, then take nothing",
    resume: "Take items again",
    enable: "Switch on",
    disable: "Switch off",
    "clear-memory": "Clear memory",
    probe: "Probe: run one small item",
    look: "Look for new models and nodes",
  },
  log: "Log",
  edit: "Settings",
  facts: "Details",
  remove: "Remove",
  moreOf: (/** @type {string} */ name) => `More for ${name}`,
  stopNow: "Stop at once",
  stopNowWords: (/** @type {string} */ name) =>
    `${name} works on an item. What it has computed of it is lost; the item is computed again by another worker, or by this one later.`,
  removeTitle: (/** @type {string} */ name) => `Remove ${name}?`,
  removeWords: "It finishes its item first. Its settings are deleted; its log stays for an hour. Files of ComfyUI are not touched.",
  clearAll: "Clear memory of all",
  cleared: (/** @type {number} */ count, /** @type {boolean} */ master) =>
    `${one(count, "worker unloads", "workers unload")} its models${master ? ", and so does this ComfyUI" : ""}.`.replace(
      "workers unload its",
      "workers unload their",
    ),
  refusedBy: (/** @type {string} */ name, /** @type {string} */ words) => `${name}: ${words}`,
  probeFailed: (/** @type {string} */ name, /** @type {string} */ words) => `The probe of ${name} failed: ${words}`,
  addWorker: "Add worker",
  addComputer: "Add a computer",
  import: "Import gpu_config.json",
  findWorker: "Find a worker",
  onlyWrong: (/** @type {number} */ count) => `Only those with problems (${count})`,
  hostLabel: (/** @type {string} */ name) => `Computer ${name}`,
  thisComputer: "this computer",
  noAgent: "no agent",
  hostMemory: (/** @type {string} */ used, /** @type {string} */ total) => `${used} of ${total} memory used`,
  hostWithoutWorkers: "It has no worker yet.",
  workerGone: "This worker is gone.",
  factNames: {
    host: "Computer",
    keeper: "Started by",
    device: "Device",
    device_class: "Device class",
    engine: "Engine",
    version: "Distributed Comfy",
    pid: "Process",
    cores: "CPUs",
    threads: "Threads",
    log_folder: "Log files",
    node_classes: "Node classes",
    model_files: "Model files",
    models: "Models in memory",
    packs: "Node packs",
  },
  keepers: {
    agent: "its agent",
    systemd: "systemd",
    container: "a container",
    run: "a command that runs",
    hand: "hand",
    comfyui: "ComfyUI itself",
  },

  // -- nothing there yet
  noWorkers: "Start here: you have no worker yet",
  noWorkersWords: "A worker is one GPU (or a CPU) that computes for you. There is one for each GPU.",
  startAgent:
    "On the computer with the GPU, run this in a terminal and leave it open. It starts one worker for each GPU, and this page shows them:",
  addHere: "Add a worker on this computer:",
  addElsewhere: "To use the GPU of another computer, get a command to run there:",
  noJobs: "No job yet",
  noJobsWords:
    "Export a workflow from ComfyUI (File > Export (API)) and run it on all workers; this one makes four pictures with four seeds:",
  noJobsComfy:
    "Put a Distributed Collector and a Distributed Seed into your workflow (Browse Templates has examples), then press Run. The job appears here.",

  // -- mending what does not start, and what is not there
  actionOf: (/** @type {string} */ action, /** @type {string} */ name) => `${action}: ${name}`,
  treeFact: "ComfyUI's folder",
  pythonFact: "Python of ComfyUI",
  byItsComputer: "chosen by its computer",
  notHere:
    "Nothing on this computer keeps workers now. To add one here, run this in a terminal and leave it open; then its devices can be chosen:",
  chooseHost: (/** @type {string} */ name) => `${name} (this computer): not now`,
  otherHost: { label: "Or on another computer", words: "One that has joined already." },
  needsTunnel: "Open the tunnel first: the command contains its address.",
  // -- jobs that were ended before they were done
  goOnWithRest: "Go on with the rest",
  collectHere: "Collect it here",
  notMade: "not made",
  stagesToo: ", and the final stage",
  stagesThen: ", then the final stage",
  savedTwice:
    "This job was ended before it was done, and went on later. What had been collected until then was saved at once; the final stage saves everything by its own name. Pictures may therefore be here twice.",

  // -- the log of a worker
  logOf: (/** @type {string} */ name) => `Log of ${name}`,
  logSearch: "Search the log",
  logOnlyWrong: "Warnings and errors only",
  logDownload: "Download",
  logConnecting: "Loading…",
  logLive: "Live: new lines appear by themselves.",
  logBroken: (/** @type {string} */ why) => `Not live now. ${why} It is tried again.`,
  logFound: (/** @type {number} */ count) => one(count, "line", "lines"),

  // -- forms
  fields: {
    device: {
      label: "Device",
      words: "cuda:0 is the first NVIDIA GPU; cpu works everywhere, slowly. Several GPUs for one worker: cuda:0, cuda:1.",
    },
    args: { label: "Extra arguments of ComfyUI", words: "Written as in a terminal; empty: the computer's own." },
    tags: { label: "Tags", words: "Words that jobs can ask for, separated by commas." },
    threads: { label: "CPU threads", words: "Empty: chosen by itself." },
    enabled: { label: "Start it together with the others", words: "Otherwise it waits until you start it." },
    url: { label: "Address of the ComfyUI", words: "http://host:port" },
    tree: {
      label: "ComfyUI's folder",
      words: "On the worker's computer: the folder with main.py and nodes.py. Empty: the one that its computer uses.",
    },
    python: {
      label: "Python of ComfyUI",
      words: "The program that runs it there, like /home/you/ComfyUI/.venv/bin/python. Empty: the one in ComfyUI's folder.",
    },
    name: { label: "Name", words: "Small letters, digits, - and _. Empty: after the computer and the device." },
    newName: {
      label: "Name",
      words: "Small letters, digits, - and _. Its log stays under the old name.",
      whileRunning: "It can be changed while the worker does not run: press Stop first.",
    },
    host: { label: "Computer", words: "Where the worker runs." },
    address: { label: "Host", words: "Name or IP address where that ComfyUI can be reached from the chosen computer." },
    port: { label: "Port", words: "ComfyUI's own is 8188." },
    bind: { label: "Address of this computer", words: "By which the other one reaches it, where it has several. Empty: found by itself." },
    hostName: { label: "Name of that computer", words: "By which you will know it here. Empty: host1, host2…" },
  },
  moreOptions: "More",
  deviceWrong: "Write cpu, mps, cuda:0 or xpu:0 (with the number of the GPU), or several GPUs with commas.",
  threadsWrong: "Write a whole number up to 1024, or nothing.",
  argsWrong: (/** @type {string} */ word) => `Arguments begin with --; “${word}” does not.`,
  nameWrong: "Use small letters, digits, - and _ only.",
  nameTaken: (/** @type {string} */ name) => `There is a worker ${name} already.`,
  nameByItself: "by itself",
  addressWrong: "Write a host name or an IP address, without http:// and without the port.",
  portWrong: "Write a whole number from 1 to 65535.",
  devicesThere: "Those of the computer",
  argumentsExample: "none; for example: --lowvram",
  deviceUsed: (/** @type {string} */ names) => `Used by ${names} already; workers on one device share its memory.`,
  /** @param {{name: string, model: string, memory_bytes: number}} device */
  deviceChoice: ({ name, model, memory_bytes }) =>
    [name, model, memory_bytes ? `${Math.round(memory_bytes / 2 ** 30)} GB` : ""].filter(Boolean).join(" · "),
  commonArguments: "Common arguments",
  editTitle: (/** @type {string} */ name) => `Settings of ${name}`,
  saveLater: "Save for the next start",
  saveAndRestart: "Save and restart",
  add: "Add",
  added: (/** @type {string} */ name) => `${name} was added.`,
  addWhere: "Where is the GPU?",
  ways: {
    here: { label: "This computer", words: "Or one that has joined already" },
    network: { label: "Another computer", words: "In your network" },
    cloud: { label: "Cloud", words: "Through the internet" },
    existing: { label: "A running ComfyUI", words: "By its host and port" },
  },
  hereOption: (/** @type {string} */ name) => `${name} (this computer)`,
  notConfigurable:
    "No agent lets workers be added from this page. Start it with --remote-configuration on its computer, or run this on the computer with the GPU:",
  invite: "Get the command",
  runThere: (/** @type {string} */ name) => `Do this on ${name}:`,
  installThere: "Install Distributed Comfy as you did here, where that has not been done (README, Install on each host).",
  joinThere: "Run this, and leave the terminal open:",
  inviteSecret: (/** @type {string} */ until) => `The command is a password: whoever has it can join. It works once, until ${until}.`,
  waitsForHost: (/** @type {string} */ name) => `Waiting for ${name}…`,
  hasJoined: (/** @type {string} */ name) => `${name} has joined. Its workers appear among the others.`,
  command: "Command",
  copy: "Copy",
  copied: "Copied",
  copyByHand: "Press Ctrl+C",

  // -- import
  importWords: "Takes workers and settings over from ComfyUI-Distributed. Nothing is changed before you have seen what would be.",
  importFile: "The file gpu_config.json",
  importNow: "Take over",
  importWould: (/** @type {number} */ count) => `Would be taken over: ${one(count, "worker", "workers")}`,
  importDone: (/** @type {number} */ count) => `Taken over: ${one(count, "worker", "workers")}`,
  imported: (/** @type {number} */ count) => `${one(count, "worker was", "workers were")} taken over.`,
  importOptions: (/** @type {string} */ options) => `Settings: ${options}`,
  importDropped: "Not taken over",

  // -- jobs
  jobStates: {
    pending: "Waiting",
    running: "Running",
    paused: "Paused",
    parked: "Parked",
    done: "Done",
    failed: "Failed",
    cancelled: "Cancelled",
  },
  jobFilters: {
    all: (/** @type {number} */ count) => `All ${count}`,
    active: (/** @type {number} */ count) => `Active ${count}`,
    ended: (/** @type {number} */ count) => `Ended ${count}`,
  },
  filterJobs: "Which jobs",
  findJob: "Find a job",
  noSuchJobs: "No job is like that.",
  untitled: (/** @type {string} */ id) => `Job ${id}`,
  items: (/** @type {number} */ done, /** @type {number} */ total, /** @type {number} */ failed) =>
    `${done} of ${one(total, "item", "items")}${failed ? `, ${failed} failed` : ""}`,
  mine: "yours",
  took: (/** @type {string} */ time, /** @type {string} */ when) => `took ${time}, ended ${when}`,
  endsIn: (/** @type {string} */ time) => `about ${time} left`,
  position: (/** @type {number} */ place) => (place === 1 ? "next in the queue" : `number ${place} in the queue`),
  jobDetail: "The job",
  allJobs: "‹ All jobs",
  runningNow: (/** @type {number} */ count) => `${count} running now`,
  tiles: (/** @type {number} */ done, /** @type {number} */ total) => `${done} of ${total} tiles`,
  submitted: (/** @type {string} */ user, /** @type {string} */ host, /** @type {string} */ when) =>
    `by ${user || "?"} on ${host || "?"}, ${when}`,
  owner: (/** @type {string} */ owner) => `collected by ${owner}`,
  jobOrders: { pause: "Pause", resume: "Go on", retry: "Try failed items again", cancel: "Cancel job" },
  priority: "Priority",
  priorityWords: (/** @type {number} */ number) => ({ 9: "9 (first)", 5: "5 (usual)", 0: "0 (last)" })[number] ?? String(number),
  cancelTitle: "Cancel this job?",
  cancelWords: (/** @type {number} */ count) =>
    `${one(count, "item is", "items are")} not done and will not be computed. What is done stays where it has been saved.`,
  itemGrid: (/** @type {number} */ count) => one(count, "item", "items"),
  itemStates: {
    blocked: "waits for others",
    pending: "waiting",
    waiting: "tried again soon",
    running: "running",
    done: "done",
    failed: "failed",
    stopped: "stopped",
  },
  itemLabel: (/** @type {number} */ index, /** @type {string} */ state, /** @type {string} */ worker) =>
    `Item ${index}, ${state}${worker ? `, ${worker}` : ""}`,
  ofItem: (/** @type {number} */ index) => `item ${index}`,
  itemTitle: (/** @type {number} */ index) => `Item ${index}`,
  seed: (/** @type {string} */ seed) => `seed ${seed}`,
  attempts: (/** @type {number} */ count) => one(count, "failed attempt", "failed attempts"),
  atNode: (/** @type {string} */ name, /** @type {string} */ id) => `Node ${[name, id && `(${id})`].filter(Boolean).join(" ")}`,
  onWorker: (/** @type {string} */ name) => `on ${name}`,
  traceback: "Traceback",
  results: "Results",
  noResults: "It left no files here.",
  noResultsYet: "None yet.",
  resultsElsewhere: (/** @type {string} */ host) => `They are on ${host}; open the page of that computer to look at them.`,
  resultsLater: "They come here when the whole workflow has ended.",
  resultsNotListed: "ComfyUI names none. It names files of workflows that it ran since its start; older ones lie in its output folder.",
  resultsOfComfy: "This page knows no folder of them. A ComfyUI keeps its own in its output folder, and its own page shows them.",
  resultsFolder: "Folder: ",
  previewGone: "There is no preview of it any more.",
  previewInFiles: "Its preview is not kept any more; what it made is among the files below.",
  fileNotShown: "It cannot be shown. See whether the file is still there, or download it.",
  play: "Play",
  playOf: (/** @type {string} */ name) => `Play ${name}`,
  lookAt: "Look",
  look: (/** @type {string} */ name) => `Look at ${name}`,
  download: "Download",
  downloadOf: (/** @type {string} */ name) => `Download ${name}`,

  // -- this computer
  master: "This ComfyUI",
  masterFacts: (/** @type {string} */ version, /** @type {string} */ address, /** @type {string} */ device) =>
    [version && `ComfyUI ${version}`, address, device].filter(Boolean).join(" · "),
  sessions: { off: "Not connected", starting: "Connecting", ready: "Connected", failed: "Cannot connect" },
  masterQueue: (/** @type {number} */ running, /** @type {number} */ waiting) =>
    `${one(running, "prompt runs", "prompts run")}, ${waiting} in its queue`,
  options: {
    participate: { label: "Take part in jobs", words: "This ComfyUI computes items of its own jobs too; off: it only orchestrates." },
    ordinary: { label: "Ordinary prompts on any GPU", words: "Prompts without distributed nodes may run on any free worker." },
    auto_launch: { label: "Start workers with ComfyUI", words: "The workers of this computer start together with it." },
    stop_workers: { label: "End workers with ComfyUI", words: "Workers that it has started end with it." },
    debug: { label: "Detailed logs", words: "In the browser's console: status, distribution and traffic." },
  },
  workTitle: "Work",
  workWords: (/** @type {number} */ mine, /** @type {number} */ all) =>
    `${one(mine, "job of yours is", "jobs of yours are")} not over; ${all} in all.`,
  interruptJob: (/** @type {string} */ title) => `Interrupt ${title}`,
  interruptMine: "Interrupt all of mine",
  interruptAll: "Interrupt everything",
  interruptTitle: { job: "Interrupt this job?", mine: "Interrupt all of your jobs?", all: "Interrupt everything, of all users?" },
  interruptWords: (/** @type {number} */ jobs, /** @type {number} */ prompts) =>
    jobs
      ? `${one(jobs, "job ends", "jobs end")} now; items that are not done are not computed.`
      : `${one(prompts, "prompt ends", "prompts end")} now.`,
  interruptNow: "Interrupt",
  interrupted: (/** @type {number} */ jobs, /** @type {number} */ prompts) =>
    `${one(jobs, "job", "jobs")}${prompts ? ` and ${one(prompts, "prompt", "prompts")}` : ""} interrupted.`,
  redis: "Redis",
  invitedTo: (/** @type {string} */ address) => `invited to ${address}`,
  serverNames: { state: "Queues and jobs", blobs: "Pictures and tensors on their way", one: "Queues, jobs, pictures and tensors" },
  up: "Answers",
  down: "Does not answer",
  serverVersion: (/** @type {string} */ version) => `version ${version}`,
  kept: "written to disk",
  notKept: "kept in memory only: a restart of the server loses the queue",
  computers: "Computers",
  noHosts: "No computer runs an agent. `distributed-comfy up` starts one.",
  hostFacts: (/** @type {string} */ system, /** @type {number} */ cpus, /** @type {number} */ workers) =>
    [system, one(cpus, "CPU", "CPUs"), one(workers, "worker", "workers")].filter(Boolean).join(" · "),
  hostResources: (/** @type {string} */ memory, /** @type {string} */ disk) => `${memory} of memory and ${disk} of disk free`,
  showInvites: (/** @type {number} */ count) => (count > 0 ? `Invited computers (${count})` : "Invited computers"),
  invites: "Invited computers",
  noInvites: "Nobody is invited.",
  inviteConnected: (/** @type {number} */ count, /** @type {string} */ url) => `${one(count, "connection", "connections")} by ${url}`,
  inviteAway: (/** @type {string} */ when) => `has joined; last seen ${when}`,
  inviteWaits: (/** @type {string} */ until) => `has not joined yet; may until ${until}`,
  inviteExpired: "has not joined in time",
  revoke: "Shut out",
  revokeTitle: (/** @type {string} */ host) => `Shut ${host} out?`,
  revokeWords: "Its workers are cut off at once; what they compute is given to others. It can only come back with a new invitation.",
  tunnel: "Public address",
  tunnelWords: "Lets computers anywhere join through the internet, with cloudflared. Only invited ones get in.",
  tunnelStates: { closed: "Closed", opening: "Opening…", open: "Open: ", closing: "Closing…", ended: "Has ended", failed: "Could not be opened" },
  openTunnel: "Open tunnel",
  closeTunnel: "Close tunnel",
  closeTunnelWords: "Computers that came by it are cut off, and what they compute is given to others.",
  settings: "Timeouts and limits",
  settingsWords: "They are read when Distributed Comfy starts.",
  changeSettings: "Change timeouts",
  showSettings: "Show all",
  settingsWhen: {
    page: "They are read at the start: what you change here counts when `distributed-comfy serve` and `up` have been started again on this computer. Workers that go on meanwhile keep what they had, and other computers have settings of their own.",
    comfyui:
      "They are read at the start: what you change here counts when ComfyUI has been started again. Workers that go on meanwhile keep what they had, and other computers have settings of their own.",
  },
  /** @type {Record<string, {label: string, words: string}>} */
  settingFields: {
    DC_STALL_TIMEOUT_S: {
      label: "A silent engine is ended after (seconds)",
      words: "So long may an engine give no sign of life. Make it longer than your slowest model takes to load.",
    },
    DC_DRAIN_TIMEOUT_S: {
      label: "A worker that you stop may finish for (seconds)",
      words: "Then it gives its item back, and another worker computes it.",
    },
    DC_LEASE_TTL_S: {
      label: "A worker counts as lost after (seconds)",
      words: "So long may nothing be heard of it. Longer for a network that drops out now and then; the same on all computers.",
    },
    DC_MAX_ATTEMPTS: {
      label: "Attempts for each item",
      words: "An item that fails for a reason that may pass is tried so often.",
    },
    DC_OWNERLESS_TTL_S: {
      label: "A job that nobody collects is kept for (seconds)",
      words: "Such as that of a ComfyUI that has ended. Then it is cancelled.",
    },
    DC_JOB_TTL_S: {
      label: "An ended job stays listed for (seconds)",
      words: "86400 is a day.",
    },
  },
  settingWrong: (/** @type {number} */ low, /** @type {number} */ high) =>
    `Write a number from ${low} to ${high}, or nothing for the default.`,
  settingFixed: "An environment variable says this, which comes before what is kept here.",
  settingNow: (/** @type {string} */ value) => `It is ${value} until then.`,
  saveSettings: "Save for the next start",
  settingsKept: "Kept. It counts from the next start.",
  settingsFile: "All are environment variables, or stand in this file: ",
  findSetting: "Find a setting",
  notSet: "not set",
  byDefault: (/** @type {string} */ value) => `By default ${value}.`,

  // -- computers and servers that are silent
  unknownSince: (/** @type {string} */ clock) => `Unknown since ${clock}`,
  summaryUnknown: (/** @type {number} */ workers, /** @type {string} */ clock) =>
    [workers ? `${one(workers, "worker", "workers")}, unknown` : "Unknown", clock && `since ${clock}`].filter(Boolean).join(" "),
  stateUnknown: "State unknown",
  redisAway: "Redis is away",
  redisDownSince: (/** @type {string} */ clock) => `Redis has not answered since ${clock}.`,
  gone: {
    tag: "not heard of",
    words: (/** @type {string} */ clock, /** @type {string} */ ago) => `Not heard of since ${clock} (${ago}).`,
    remedy: "Start `distributed-comfy up` there, or look at its network.",
    forget: "Forget this computer",
    forgetTitle: (/** @type {string} */ name) => `Forget ${name}?`,
    forgetWords: "It and its workers are not shown any more. They are there again when `distributed-comfy up` runs there.",
  },
  ownAgent: {
    none: "`distributed-comfy up` does not run here. Start it in a terminal, and leave that open:",
    elsewhere:
      "`distributed-comfy up` runs here, but this page's Redis does not hear of it. If it has just been started, wait a moment. If not, it is connected with another Redis: end it with Ctrl+C, and start it again:",
    unwatched: "Nobody looks after its workers: one that ends is not started again.",
  },
  reportOld: "This is old: much may have changed since. Examine again.",

  // -- help
  wrongNow: "What is wrong now",
  allWell: "Nothing is wrong that this page knows of",
  doctor: "Doctor",
  doctorWords:
    "Looks at Redis, workers, versions, models and custom nodes, and runs one small item on each free worker. Takes up to a minute.",
  runDoctor: "Examine everything",
  doctorRuns: "Examining…",
  healthy: "The doctor found nothing wrong.",
  examined: (/** @type {string} */ when) => `Examined ${when}`,
  levels: { ok: "Well", warn: "Warning", fail: "Failed" },
  probes: "Probe one worker",
  probeWords: "Runs one small item there and says whether it came back.",
  probe: (/** @type {string} */ name) => `Probe ${name}`,
  common: "Common troubles",
  commonTroubles: [
    {
      symptom: "A worker does not start",
      remedy:
        "Its card says why, and what is to be changed: its device, arguments, and the folder and Python of its ComfyUI are under Settings. For a missing Python package or too little memory, Log has the engine's own words.",
    },
    {
      symptom: "A worker that I started in a terminal cannot be started again from here",
      remedy:
        "Workers that you start by hand, by systemd or in a container belong to whoever started them. Stop it there and add it here (Add worker) to let its agent keep it.",
    },
    {
      symptom: "Some pictures are missing or differ",
      remedy:
        "Let the doctor compare models, custom nodes and versions of all workers. Pictures are equal bit for bit only on the same GPU model, driver and versions.",
    },
    {
      symptom: "Another computer does not join",
      remedy:
        "It must reach the address in its command: the firewall of this computer has to let that port in. Where only the internet connects the two, use Cloud.",
    },
    {
      symptom: "A worker runs out of memory",
      remedy: "Clear its memory, or give it --lowvram or --reserve-vram in its settings. Two workers on one GPU share its memory.",
    },
  ],
};

/** Orders in a terminal -> what does the same on this page. @type {Record<string, string>} */
const BUTTONS = {
  "workers start": T.orders.start,
  "workers stop": T.orders.stop,
  "workers restart": T.orders.restart,
  "workers drain": T.orders.drain,
  "workers resume": T.orders.resume,
  "workers undrain": T.orders.resume,
  "workers enable": T.orders.enable,
  "workers disable": T.orders.disable,
  "workers clear-memory": T.orders["clear-memory"],
  "workers edit": T.edit,
  "workers remove": T.remove,
  "workers add": T.addWorker,
  "workers logs": T.log,
  "workers list": T.sections.workers,
  "jobs list": T.sections.jobs,
  "jobs attach": T.collectHere,
  doctor: T.runDoctor,
  "invite list": T.showInvites(0),
  invite: T.addComputer,
};

/**
 * What errors advise for a terminal, and what this page says in its place.
 * @type {[RegExp, string | ((all: string, ...parts: string[]) => string)][]}
 */
export const PAGE_WORDS = [
  [
    /`(?:distributed-comfy )?((?:workers|jobs) [a-z-]+|doctor|invite list|invite)((?: [^`]*)?)`/g,
    (all, order, rest) => {
      const label = BUTTONS[order];
      const name = /^ ([a-z0-9_][\w-]*)/.exec(rest)?.[1];
      return label ? `“${label}”${name ? ` (${name})` : ""}` : all;
    },
  ],
  [/`distributed-comfy hosts forget [^`]*`/g, `press “${T.gone.forget}”`],
  [/raise DC_STALL_TIMEOUT_S if/, `raise the time for a silent engine (“${T.changeSettings}”) if`],
  [/look into its log for what it said last/, `press “${T.log}”: what it said last is at the end`],
  [/look into its log/, `press “${T.log}”`],
  [/let it have items again with Resume/, `press “${T.orders.resume}”`],
  [/choose another --name/, "choose another name"],
  [/^--tunnel needs/, `“${T.openTunnel}” needs`],
  [/^--now needs an agent/, `“${T.stopNow}” needs an agent`],
  [/or give it time with --wait SECONDS/, "or start a worker that can"],
];

/**
 * The same for what only the settings of a worker can change, where they can be changed from this page.
 * @type {[RegExp, string][]}
 */
export const EDIT_WORDS = [
  [/start the worker with --device cpu or install/, `press “${T.edit}” and choose cpu or another device, or install`],
  [/use --device cpu, or install/, `press “${T.edit}” and choose cpu as its device, or install`],
  [/name another --device \([^)]*\)/, `press “${T.edit}” and choose another device`],
  [/see that the driver lists it/, `press “${T.edit}” and choose another device, or see that the driver lists it`],
  [
    /(give the worker --lowvram, )?or run it where there is more memory/,
    `give the worker --lowvram (“${T.edit}”), or run it where there is more memory`,
  ],
  [/set DC_COMFYUI_URL to the address/, `write into “${T.fields.url.label}” (“${T.edit}”) the address`],
];
