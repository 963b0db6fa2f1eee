// What the server says about everything, as it is now: filled by the stream of events, read by the views.
//
// Values are replaced, never altered: a worker that is the same object as before has not changed.
import { followEvents } from "./events.js";

const RETURN_MS = 5000;

/**
 * @typedef {import("./api_types.js").State} State
 * @typedef {import("./api_types.js").Worker} Worker
 * @typedef {import("./api_types.js").Job} Job
 * @typedef {import("./api_types.js").Item} Item
 * @typedef {"connecting" | "open" | "broken" | "refused"} Connection
 */

/** One per page. */
export class Store {
  /**
   * @param {import("./requests.js").Server} server
   * @param {() => void} changed
   */
  constructor(server, changed) {
    this.server = server;
    this.changed = changed;
    /** @type {State | null} */
    this.state = null;
    /** @type {Connection} */
    this.connection = "connecting";
    /** @type {Error | null} */
    this.error = null;
    /** Job whose items are told too. */
    this.watched = "";
    /** Whether the stream tells of them; not where it could not, and that job does not hide everything else. */
    this.isTold = true;
    /** @type {Record<string, Item>} of that job, by index */
    this.items = {};
    /** Of the server's clock, in ms, against this computer's. */
    this.ahead_ms = 0;
    /** @type {ReturnType<typeof followEvents> | null} */
    this.stream = null;
    this.turn = 0;
    this.returning = 0;
    this.views = new Views();
  }

  /** Begin, or begin anew with another watched job. */
  follow() {
    this.stream?.end();
    clearTimeout(this.returning);
    const turn = ++this.turn;
    const job = this.isTold ? this.watched : "";
    this.stream = followEvents((signal) => this.server.stream("events", signal, { job }), {
      event: (name, content) => {
        if (turn === this.turn) this.take(name, content);
      },
      state: (connection, error) => {
        if (turn === this.turn) this.connected(connection, error, job);
      },
    });
  }

  /**
   * @param {Connection} connection
   * @param {Error | undefined} error
   * @param {string} job that was asked for
   */
  connected(connection, error, job) {
    const status = /** @type {{status?: number} | undefined} */ (error)?.status;
    if (job && (status === 404 || status === 503)) {
      this.followWithout(status === 404);
      return;
    }
    this.connection = connection;
    if (connection === "open") this.error = null;
    else if (error) this.error = error;
    this.changed();
  }

  /**
   * Go on without the watched job, which the server does not know or cannot read now.
   * @param {boolean} isGone for good
   */
  followWithout(isGone) {
    this.isTold = false;
    this.follow();
    if (!isGone) this.returning = setTimeout(() => this.comeBack(), RETURN_MS);
  }

  /** Ask for the watched job again, once the server can read it. */
  comeBack() {
    if (this.connection === "open" && this.state?.servers.state.up) {
      this.isTold = true;
      this.follow();
    } else {
      this.returning = setTimeout(() => this.comeBack(), RETURN_MS);
    }
  }

  /**
   * Also follow the items of a job; of none where it is empty.
   * @param {string} job
   */
  watch(job) {
    if (job === this.watched) return;
    this.watched = job;
    this.isTold = true;
    this.items = {};
    this.follow();
  }

  /** Try to connect now instead of after the next pause. */
  again() {
    this.stream?.again();
  }

  end() {
    clearTimeout(this.returning);
    this.turn += 1;
    this.stream?.end();
    this.stream = null;
  }

  /** The server's time. */
  get now_ms() {
    return Date.now() + this.ahead_ms;
  }

  /**
   * @param {string} name
   * @param {any} content
   */
  take(name, content) {
    if (name === "snapshot") {
      const { items, ...state } = /** @type {import("./api_types.js").Snapshot} */ (content);
      this.state = state;
      if (this.isTold) this.items = items[this.watched] ?? {};
    } else if (name === "change" && this.state) {
      this.change(content);
    }
    if (typeof content?.now_ms === "number") this.ahead_ms = content.now_ms - Date.now();
    this.changed();
  }

  /** @param {import("./api_types.js").Change} change */
  change({ items, hosts, workers, jobs, ...rest }) {
    const state = /** @type {State} */ (this.state);
    this.state = {
      ...state,
      ...rest,
      hosts: merged(state.hosts, hosts),
      workers: merged(state.workers, workers),
      jobs: merged(state.jobs, jobs),
    };
    this.items = merged(this.items, items?.[this.watched]);
  }

  /** Workers of each host, in order. */
  get workersByHost() {
    return this.views.of("workers", this.state?.workers, (workers) => byHost(Object.values(workers ?? {})));
  }

  /** Jobs in the order of the queue: those that run, those that wait, those that have ended. */
  get jobsInOrder() {
    return this.views.of("jobs", this.state?.jobs, (jobs) => Object.values(jobs ?? {}).sort(compareJobs));
  }

  /** Items of the watched job by their index. */
  get itemsInOrder() {
    return this.views.of("items", this.items, (items) => Object.values(items ?? {}).sort((one, other) => one.index - other.index));
  }
}

/** Values that are computed again only when what they come from is another object. */
class Views {
  constructor() {
    /** @type {Map<string, {from: unknown, value: any}>} */
    this.kept = new Map();
  }

  /**
   * @template From, Value
   * @param {string} name
   * @param {From} from
   * @param {(from: From) => Value} compute
   * @returns {Value}
   */
  of(name, from, compute) {
    const kept = this.kept.get(name);
    if (kept && kept.from === from) return kept.value;
    const value = compute(from);
    this.kept.set(name, { from, value });
    return value;
  }
}

/**
 * @template Value
 * @param {Record<string, Value>} before
 * @param {Record<string, Value | null> | undefined} changes null: it is gone
 * @returns {Record<string, Value>}
 */
function merged(before, changes) {
  if (!changes || !Object.keys(changes).length) return before;
  const after = { ...before };
  for (const [name, value] of Object.entries(changes)) {
    if (value === null) delete after[name];
    else after[name] = value;
  }
  return after;
}

/** @param {Worker[]} workers */
function byHost(workers) {
  /** @type {Map<string, Worker[]>} */
  const hosts = new Map();
  const inOrder = workers.sort(
    (one, other) => Number(other.here) - Number(one.here) || compareNames(one.host, other.host) || compareNames(one.name, other.name),
  );
  for (const worker of inOrder) {
    const known = hosts.get(worker.host);
    if (known) known.push(worker);
    else hosts.set(worker.host, [worker]);
  }
  return hosts;
}

const { compare: compareNames } = new Intl.Collator(undefined, { numeric: true });

/**
 * @param {Job} one
 * @param {Job} other
 */
function compareJobs(one, other) {
  const difference = place(one) - place(other);
  if (difference) return difference;
  if (one.ended_ms || other.ended_ms) return other.ended_ms - one.ended_ms;
  return one.position - other.position || one.created_ms - other.created_ms;
}

/** @param {Job} job */
function place(job) {
  if (job.ended_ms) return 2;
  return job.state === "running" ? 0 : 1;
}
