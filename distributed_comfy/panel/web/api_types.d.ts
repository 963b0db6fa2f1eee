// Written by scripts/write_panel_types.py from openapi.json (`make docs`); do not change it by hand.

/** What went wrong, in words for people. */
export type Error = {
  /** Stable; docs/errors.md lists them, beside `token_wrong`, `foreign_origin`, `not_encrypted`, `request_wrong`, `not_found`. */
  code: string;
  /** What is wrong. */
  message: string;
  /** What to do; empty where nobody knows. */
  remedy: string;
  /** Where single fields of what was sent are wrong: field -> what it must be. `.` stands between the parts of a place. */
  fields?: Record<string, string>;
};

/** Every answer with a status of 400 or more. */
export type Failure = {
  error: Error;
};

/** One Redis server. */
export type ServerHealth = {
  /** Whether it answers. */
  up: boolean;
  /** Why it does not. */
  error: Error | null;
  /** Of the server program; empty before the first answer. */
  version: string;
  /** Memory that it uses, in whole MiB. */
  used_bytes: number | null;
  /** Its maxmemory; null: none. */
  limit_bytes: number | null;
  /** Whether it writes its data to disk; null: not known. */
  kept: boolean | null;
  /** While it does not answer: when it did last, and 0 where it has not since anybody looks: since when is not known then. Else 0. */
  down_since_ms: number;
};

/** Where everything meets. */
export type Servers = {
  /** Its address, without password. */
  shown: string;
  /** Whether this project started them itself. */
  embedded: boolean;
  /** Of a host that was invited: the cluster's address; else empty. */
  invited_to: string;
  /** Whether one server is both `state` and `blobs`, which then say the same of it. */
  one: boolean;
  state: ServerHealth;
  blobs: ServerHealth;
};

/** What a worker of a host can compute on. */
export type Device = {
  /** As a worker's field `device` has it: `cuda:0`, `xpu:0`, `mps`, `cpu`. */
  name: string;
  /** What its maker calls it; may be empty. */
  model: string;
  /** 0: not known. */
  memory_bytes: number;
  /** Names of the workers that are configured for it. */
  used_by: Array<string>;
};

/** Of a host, in bytes. */
export type Resources = {
  memory_total_bytes: number;
  memory_available_bytes: number;
  disk_total_bytes: number;
  disk_free_bytes: number;
};

/** A host with a living agent, or one whose agent fell silent within the last day without having ended in good order. */
export type Host = {
  name: string;
  /** Whether it is the one that serves this page. */
  here: boolean;
  user: string;
  /** Of distributed-comfy there. */
  version: string;
  /** Operating system and architecture. */
  system: string;
  cpus: number;
  devices: Array<Device>;
  /** Names. */
  workers: Array<string>;
  /** Whether workers can be added, edited and removed from here. */
  configurable: boolean;
  resources: Resources | null;
  /** When its agent was heard of last, where it is not any more; 0: it lives. */
  gone_ms: number;
};

/** The agent (`distributed-comfy up`) of the host that serves this page. here: the cluster hears of it; elsewhere: it runs, and the cluster does not hear of it; none: it does not run. */
export type OwnAgent = "here" | "elsewhere" | "none";

/** How much of its device is used, by whomever. */
export type DeviceUse = {
  /** Its model; may be empty. */
  name: string;
  utilisation_percent: number | null;
  /** Of its own memory; null on the CPU. */
  used_bytes: number | null;
  total_bytes: number | null;
};

/** Memory, in bytes. */
export type HostUse = {
  worker_bytes: number;
  engine_bytes: number;
  /** Of the whole host. */
  used_bytes: number;
  total_bytes: number;
};

export type LoadedModel = {
  /** Its class. */
  name: string;
  size_bytes: number;
  /** Of these, what lies on the device. */
  loaded_bytes: number;
};

/** An item that a worker has. */
export type RunningItem = {
  job: string;
  index: number;
  kind: ItemKind;
  attempt: number;
  /** Redis time. */
  started_ms: number;
  /** The node that reported last; may be empty. */
  node_id: string;
  node_class: string;
  /** Steps done by that node. */
  value: number;
  /** 0: it reports none. */
  maximum: number;
  /** It has been executed, and its result is on its way. */
  shipping: boolean;
  /** Number of the newest preview of it; 0: there is none. `/jobs/{job}/items/{index}/preview` shows it. */
  preview: number;
};

/** generate: one seed; whole: a prompt without distributed nodes; prepare: the image to upscale; tile: a part of it; last: what follows. */
export type ItemKind = "generate" | "whole" | "prepare" | "tile" | "last";

/** What last went wrong on a worker. */
export type LastError = {
  code: string;
  message: string;
  remedy: string;
  at_ms: number;
  /** Empty where it was the engine. */
  job: string;
  index: number | null;
};

/** disabled, stopped: nobody starts it; failed: cannot work as it is configured; backing-off: ended by itself and is started again at `next_start_ms`; starting: its engine is not ready; draining: finishes what it has; drained: gets nothing; down: its engine starts again; stopping: it was asked to end; lost: gives no sign of life; unknown: Redis is away since `since_ms`, and nobody can say; all else is what was known last, and it obeys no order. */
export type WorkerState = "disabled" | "stopped" | "failed" | "backing-off" | "starting" | "idle" | "busy" | "draining" | "drained" | "down" | "stopping" | "lost" | "unknown";

export type WorkerOrder = "start" | "stop" | "restart" | "drain" | "resume" | "enable" | "disable" | "clear-memory" | "look" | "probe";

/** One worker, whoever keeps it. */
export type Worker = {
  name: string;
  host: string;
  /** Whether it is on the host that serves this page. */
  here: boolean;
  state: WorkerState;
  /** green: works or could; yellow: will soon, or gets nothing on purpose; red: does not work; grey: is off. */
  colour: "green" | "yellow" | "red" | "grey";
  /** Why it does not work; empty while all is well. */
  reason: string;
  /** What to do about it; empty where nothing is to be done. */
  remedy: string;
  /** The field of `configuration` that keeps it from starting, and can be changed by PATCH; empty: none, as far as is known. */
  repair: "" | "device" | "comfyui_args" | "comfyui_path" | "comfyui_python";
  /** When it entered the state; 0: not known. */
  since_ms: number;
  /** Of backing-off: Redis time of its next start; else 0. */
  next_start_ms: number;
  /** Who starts it. comfyui: it is a ComfyUI that takes part in its own jobs. */
  keeper: "agent" | "systemd" | "container" | "run" | "hand" | "comfyui";
  /** It takes items of its own jobs only, and obeys no order. */
  guest: boolean;
  /** What it can be told now. */
  orders: Array<WorkerOrder>;
  /** Whether PATCH and DELETE work from here. */
  editable: boolean;
  enabled: boolean;
  /** It runs with another configuration than the one that is written down; a restart brings that. */
  outdated: boolean;
  /** By its agent, since that runs. */
  restarts: number;
  device: string;
  /** Results are equal bit for bit only within one. */
  device_class: string;
  /** comfyui, builtin, attach; empty: not known yet. */
  engine: string;
  engine_version: string;
  /** Of the engine's checkout; may be empty. */
  commit: string;
  /** Of distributed-comfy. */
  version: string;
  /** 0: not known. */
  started_ms: number;
  /** 0: no process. */
  pid: number;
  tags: Array<string>;
  /** CPUs it is bound to; empty: all. */
  cores: string;
  /** 0: the engine's own choice. */
  threads: number;
  /** On its host. */
  log_folder: string;
  use: DeviceUse | null;
  host_use: HostUse | null;
  /** In the engine's memory. */
  models: Array<LoadedModel>;
  items: Array<RunningItem>;
  /** Since it started. */
  items_done: number;
  /** Attempts that failed there. */
  items_failed: number;
  last_error: LastError | null;
  /** Custom node pack -> its commit or version. */
  packs: Record<string, string>;
  node_classes: number;
  model_files: number;
  /** As it is written down; values of `environment` are `(set)`. null: no agent keeps it. */
  configuration: WorkerFields | null;
};

/** What is written down about a worker. In PATCH null takes a field back to its default. */
export type WorkerFields = {
  /** `cuda:0`, `xpu:0`, `mps`, `cpu`; a list of GPUs for nodes that use several. */
  device?: string | Array<string> | null;
  /** Whether it starts with its agent. */
  enabled?: boolean | null;
  /** null: the host's choice. */
  engine?: "comfyui" | "builtin" | "attach" | null;
  /** Of a running ComfyUI, for engine attach. */
  comfyui_url?: string | null;
  /** ComfyUI's folder on that host, which looks whether it is one. */
  comfyui_path?: string | null;
  /** The Python that runs ComfyUI there. */
  comfyui_python?: string | null;
  /** Extra arguments of ComfyUI: a list, or one text as in a shell. */
  comfyui_args?: Array<string> | string | null;
  /** Variables; in PATCH null removes one. */
  environment?: Record<string, string | null> | null;
  tags?: Array<string> | null;
  threads?: number | null;
  cores?: "auto" | Array<number> | null;
  /** Its id in ComfyUI-Distributed, for scripts that know that; may be empty. */
  old_id?: string | null;
};

/** parked: nobody collects it. */
export type JobState = "pending" | "running" | "paused" | "parked" | "done" | "failed" | "cancelled";

/** retry: run what failed or was stopped again; collect: take over a job that nobody collects. After both a process on this host saves its files. */
export type JobOrder = "cancel" | "retry" | "pause" | "resume" | "priority" | "collect";

/** Of items; pending includes those that wait for others. */
export type Counts = {
  total: number;
  pending: number;
  running: number;
  done: number;
  failed: number;
};

/** One submitted prompt. */
export type Job = {
  id: string;
  /** May be empty. */
  title: string;
  state: JobState;
  /** Why it waits, failed or was cancelled. */
  reason: string;
  remedy: string;
  user: string;
  /** Of whoever submitted it. */
  host: string;
  /** It belongs to the master that serves this page; on a page of `serve`: to the same user. */
  mine: boolean;
  /** 0 (last) to 9 (first). */
  priority: number;
  created_ms: number;
  /** 0: it has not. */
  ended_ms: number;
  counts: Counts;
  /** Of the items, how many are tiles. */
  tiles: number;
  tiles_done: number;
  /** Of the items, how many prepare or end the job, and were not asked for: 0 to 2. */
  stages: number;
  /** Whether it was ended before it was done, and went on later. */
  retried: boolean;
  /** Place in the queue: 1 is next; 0: it runs, is held back, or has ended. Estimated: users take turns. Exact to 20, then in steps of 10, from 200 in steps of 100. */
  position: number;
  /** Redis time at which it will probably be done; 0: not known. */
  ends_ms: number;
  /** What it can be told now. */
  orders: Array<JobOrder>;
};

/** Why an item failed. */
export type ItemError = {
  code: string;
  message: string;
  remedy: string;
  worker: string;
  /** Empty where no node is to blame. */
  node_id: string;
  node_class: string;
  /** May be empty. */
  traceback: string;
};

/** blocked: waits for other items; waiting: failed for a passing reason and is tried again; stopped: ran when its job ended. */
export type ItemState = "blocked" | "pending" | "waiting" | "running" | "done" | "failed" | "stopped";

/** What a GPU does in one go. */
export type Item = {
  index: number;
  kind: ItemKind;
  /** Decimal, for people; may be empty. */
  seed: string;
  state: ItemState;
  worker: string;
  /** That failed. */
  attempts: number;
  /** Engine time; null: not done. */
  seconds: number | null;
  error: ItemError | null;
  /** Number of the newest picture at `/jobs/{job}/items/{index}/preview`; 0: there is none. */
  preview: number;
};

/** A file of a job. */
export type ResultFile = {
  /** For `/jobs/{job}/results/{path}`. */
  path: string;
  /** For people. */
  name: string;
  media_type: string;
  size_bytes: number;
  /** The item it comes from: while the job is collected as its spool says, later as the seed in a PNG says; null where neither does, and for files of a ComfyUI's own nodes. */
  item: number | null;
};

/** A job with all that is known of it. */
export type JobDetail = {
  job: Job;
  /** Who collects it; may be empty. */
  owner: string;
  /** How its tensors travel, in words. */
  frames: string;
  /** Of a failed job: what it failed with. */
  error: ItemError | null;
  items: Array<Item>;
  /** Host where its results are; empty: nowhere yet. */
  results_host: string;
  /** There. */
  results_folder: string;
  /** Whether this server can show them; also where there are none yet. */
  results_here: boolean;
  results: Array<ResultFile>;
  /** Whether no more files come; until then the list is worth reading again. */
  results_complete: boolean;
};

/** An invited host. */
export type Invite = {
  host: string;
  /** By which it comes. */
  url: string;
  created_ms: number;
  /** Until then it must have joined. */
  expires_ms: number;
  /** 0: not yet. */
  joined_ms: number;
  /** When it was heard of last; 0: never. */
  seen_ms: number;
  /** Now. */
  connections: number;
};

/** A password: it is told once. */
export type NewInvite = {
  host: string;
  url: string;
  expires_ms: number;
  /** Of the certificate's authority (SHA-256); may be empty. */
  fingerprint: string;
  /** To run on that host. */
  command: string;
};

/** A public address that leads to this cluster, by cloudflared. */
export type Tunnel = {
  /** `ended`: its program ended by itself, as `error` says; `failed`: it could not be opened. */
  state: "closed" | "opening" | "open" | "closing" | "ended" | "failed";
  /** `wss://...` while it is open, else empty. */
  url: string;
  /** 0: never was open. */
  since_ms: number;
  error: Error | null;
};

/** Of the node pack. */
export type Options = {
  /** It takes items of its own jobs too; otherwise it only orchestrates. */
  participate: boolean;
  /** Prompts without distributed nodes may run on any GPU; null: not asked yet. */
  ordinary: boolean | null;
  debug: boolean;
  /** Workers of this host start with ComfyUI. */
  auto_launch: boolean;
  /** Workers that it started end with it. */
  stop_workers: boolean;
};

/** Those to change. */
export type OptionChanges = {
  /** It takes items of its own jobs too; otherwise it only orchestrates. */
  participate?: boolean;
  /** Prompts without distributed nodes may run on any GPU; null: not asked yet. */
  ordinary?: boolean | null;
  debug?: boolean;
  /** Workers of this host start with ComfyUI. */
  auto_launch?: boolean;
  /** Workers that it started end with it. */
  stop_workers?: boolean;
};

/** The ComfyUI that serves this page. */
export type Master = {
  /** Of ComfyUI. */
  version: string;
  /** Host and port. */
  address: string;
  /** That it computes on. */
  device: string;
  /** Its connection to the cluster. */
  session: "off" | "starting" | "ready" | "failed";
  /** Why it is not ready; may be empty. */
  reason: string;
  /** Where the agent of this host is. */
  agent: "none" | "here" | "elsewhere" | "failed";
  agent_reason: string;
  options: Options;
  /** Why ordinary prompts are not sent to the cluster now; empty where they are, or are not to be. */
  ordinary: string;
  /** Prompts that it runs now, here or on workers. */
  running: number;
  /** In its queue. */
  waiting: number;
  /** Of its prompts that are not over. */
  jobs: Array<string>;
};

/** Everything a page shows. */
export type State = {
  /** Grows with each change. */
  revision: number;
  /** Of the serving process: where it differs from before, load `/state` again. */
  instance: string;
  /** Redis time; every `..._ms` is. */
  now_ms: number;
  /** Of distributed-comfy. */
  version: string;
  /** That serves this page. */
  host: string;
  /** That serves this page. */
  user: string;
  kind: "serve" | "comfyui";
  servers: Servers;
  /** By name. */
  hosts: Record<string, Host>;
  /** By name. */
  workers: Record<string, Worker>;
  /** By id. */
  jobs: Record<string, Job>;
  /** null on a page of `serve`. */
  master: Master | null;
  /** Number of invited hosts; -1: this process may not know. */
  invites: number;
  tunnel: Tunnel;
  agent: OwnAgent;
};

/** Data of the event `snapshot`: a State, and the items of the watched job. */
export type Snapshot = {
  /** Grows with each change. */
  revision: number;
  /** Of the serving process: where it differs from before, load `/state` again. */
  instance: string;
  /** Redis time; every `..._ms` is. */
  now_ms: number;
  /** Of distributed-comfy. */
  version: string;
  /** That serves this page. */
  host: string;
  /** That serves this page. */
  user: string;
  kind: "serve" | "comfyui";
  servers: Servers;
  /** By name. */
  hosts: Record<string, Host>;
  /** By name. */
  workers: Record<string, Worker>;
  /** By id. */
  jobs: Record<string, Job>;
  /** null on a page of `serve`. */
  master: Master | null;
  /** Number of invited hosts; -1: this process may not know. */
  invites: number;
  tunnel: Tunnel;
  agent: OwnAgent;
  /** By job: that of `?job=`; else empty. */
  items: Record<string, Record<string, Item>>;
};

/** Data of the event `change`: only what differs. Under a name stands the whole new value, or null where it is gone. */
export type Change = {
  revision: number;
  now_ms: number;
  servers?: Servers;
  hosts?: Record<string, Host | null>;
  workers?: Record<string, Worker | null>;
  jobs?: Record<string, Job | null>;
  master?: Master | null;
  invites?: number;
  tunnel?: Tunnel;
  agent?: OwnAgent;
  items?: Record<string, Record<string, Item | null>>;
};

export type LogLine = {
  /** Its place: what `after` takes. */
  id: string;
  at_ms: number;
  source: "worker" | "engine";
  /** INFO, WARNING...; may be empty. */
  level: string;
  text: string;
};

/** The last lines of a worker's log, oldest first. */
export type Log = {
  worker: string;
  lines: Array<LogLine>;
  /** How many lines there are in all; the search went through all of them. */
  searched: number;
  /** What `/log/stream?after=` goes on from; `0`: from the beginning. */
  last_id: string;
};

/** Data of the event `lines`. */
export type LogLines = {
  lines: Array<LogLine>;
};

/** What a look at one thing found. */
export type Finding = {
  check: string;
  level: "ok" | "warn" | "fail";
  found: string;
  remedy: string;
  /** The worker it is about; empty: none. */
  worker: string;
};

export type Report = {
  /** Nothing failed. */
  healthy: boolean;
  findings: Array<Finding>;
};

/** What was done. */
export type OrderAnswer = {
  /** For people. */
  text: string;
  /** Its name; of a new one that got one. */
  worker: string;
  host: string;
  /** Of order probe. */
  finding: Finding | null;
};

/** What was done, by worker. */
export type OrdersAnswer = {
  /** Worker -> what it does. */
  told: Record<string, string>;
  /** Worker -> why it does not. */
  refused: Record<string, Error>;
  /** Whether the master was told too. */
  master: boolean;
};

export type Dropped = {
  /** Where it stands in the file. */
  place: string;
  why: string;
};

/** What was taken over. */
export type Imported = {
  dry_run: boolean;
  /** Name -> what is written down of it. */
  workers: Record<string, WorkerFields>;
  /** Of the node pack. */
  options: Record<string, boolean>;
  dropped: Array<Dropped>;
};

/** A common argument of ComfyUI. */
export type ExtraArgument = {
  /** `--reserve-vram` */
  argument: string;
  /** An example of its value; empty: it takes none. */
  value: string;
  /** What it does. */
  words: string;
  /** Those it cannot stand beside. */
  excludes: Array<string>;
  /** Whether it is of use on a GPU alone. */
  gpu: boolean;
};

/** A setting of this process; it is read once, at the start. */
export type Setting = {
  /** `DC_LEASE_TTL_S` */
  name: string;
  value: string | number | boolean | null;
  /** What it will be after the next start, by the environment of now and the file. */
  next: string | number | boolean | null;
  default: string | number | boolean | null;
  words: string;
  /** Whether PATCH takes it. */
  changeable: boolean;
  /** An environment variable says it, which the file cannot change. */
  fixed: boolean;
  /** Of one that is changeable. */
  minimum: number | null;
  maximum: number | null;
};

/** Timeouts and limits. */
export type Settings = {
  settings: Array<Setting>;
  /** Where they can be written. */
  file: string;
  /** Why that file cannot be used as it is now; empty where it can. */
  trouble: string;
};

/** By name; null: the default again. */
export type SettingChanges = Record<string, number | null>;

/** What was ended. */
export type Interrupted = {
  jobs: Array<string>;
  /** Of the master. */
  prompts: number;
  /** Job -> why it goes on. */
  refused: Record<string, Error>;
};
