// Who is silent: a computer that is not heard of any more, this one where no agent runs, and everybody while Redis is away.
import { commandBox } from "./copy.js";
import { button } from "./dialog.js";
import { h } from "./dom.js";
import { ago } from "./format.js";
import { T } from "./texts.js";

/**
 * @typedef {import("./api_types.js").Host} Host
 * @typedef {import("./panel.js").Panel} Panel
 * @typedef {import("./store.js").State} State
 */

const DAY_MS = 86_400_000;
const WITHOUT_REDIS = new Set(["doctor", "settings", "tunnel", "master", "interrupt"]);
const FILE = "file ";
const SILENT_CODES = new Set(["redis_unreachable", "redis_busy", "redis_refused", "state_not_read", "joined_unreachable", "relay_unreachable"]);

/**
 * Whether it is the server that does not answer; else what reads it has a fault of its own, and orders may still arrive.
 * @param {import("./api_types.js").ServerHealth} health
 */
export function isSilent({ up, error }) {
  return !up && (error === null || SILENT_CODES.has(error.code));
}

/**
 * Names of what is under way; while Redis is away nothing that needs it can be begun.
 * @extends {Set<string>}
 */
export class Busy extends Set {
  /** @param {() => boolean} isAway */
  constructor(isAway) {
    super();
    this.isAway = isAway;
  }

  /** @param {string} name */
  isUnderWay(name) {
    return super.has(name);
  }

  /**
   * Whether it cannot be begun now.
   * @param {string} name
   */
  has(name) {
    return super.has(name) || (this.isAway() && !WITHOUT_REDIS.has(name) && !name.startsWith(FILE));
  }
}

/**
 * Hours and minutes; of another day with that.
 * @param {number} at_ms
 * @param {number} now_ms
 */
export function timeOf(at_ms, now_ms) {
  /** @type {Intl.DateTimeFormatOptions} */
  const minute = { hour: "2-digit", minute: "2-digit", hourCycle: /** @type {const} */ ("h23") };
  const day = now_ms - at_ms < DAY_MS / 2 ? minute : { ...minute, day: /** @type {const} */ ("numeric"), month: /** @type {const} */ ("short") };
  return new Date(at_ms).toLocaleString(undefined, day);
}

/**
 * Since when a computer is not heard of.
 * @param {Host} host
 * @param {number} now_ms
 */
export function goneWords({ gone_ms }, now_ms) {
  return T.gone.words(timeOf(gone_ms, now_ms), ago(gone_ms, now_ms));
}

/**
 * What is said of a computer that is not heard of, and the button that forgets it.
 * @param {Panel} panel
 * @param {Host} host
 */
export function goneNote(panel, host) {
  return h(
    "div",
    { key: "gone", class: "silent", "data-gone": host.name },
    h("p", { class: "reason red" }, goneWords(host, panel.store.now_ms)),
    !host.here && h("p", { class: "remedy" }, T.gone.remedy),
    forgetButton(panel, host.name),
  );
}

/**
 * @param {Panel} panel
 * @param {string} name
 */
export function forgetButton(panel, name) {
  return button(T.gone.forget, () => forget(panel, name), {
    key: "forget",
    disabled: panel.busy.has(`host ${name}`),
    "data-forget": name,
  });
}

/**
 * @param {Panel} panel
 * @param {string} name
 */
async function forget(panel, name) {
  const question = { title: T.gone.forgetTitle(name), words: T.gone.forgetWords, action: T.gone.forget };
  if (!(await panel.dialog.confirm(question))) return;
  await panel.act(`host ${name}`, async () => (await panel.server.change("DELETE", `hosts/${encodeURIComponent(name)}`)).text);
}

/**
 * Whether to say that no agent of this computer is heard of; where nothing is there at all, the first steps say so.
 * @param {State} state
 */
export function lacksAgent({ kind, agent, servers, workers }) {
  if (kind !== "serve" || agent === "here" || !servers.state.up) return false;
  return agent === "elsewhere" || Object.keys(workers).length > 0;
}

/**
 * How to have an agent here again.
 * @param {State} state
 */
export function agentNote(state) {
  const own = Object.values(state.workers).filter((worker) => worker.here);
  const unwatched = own.some((worker) => worker.keeper === "agent" && worker.state !== "lost");
  return h(
    "div",
    { key: "agent", class: "silent", "data-agent": state.agent },
    h(
      "p",
      { class: unwatched ? "reason red" : "muted" },
      state.agent === "elsewhere" ? T.ownAgent.elsewhere : T.ownAgent.none,
    ),
    commandBox("distributed-comfy up"),
    unwatched && h("p", { key: "unwatched", class: "remedy" }, T.ownAgent.unwatched),
  );
}
