// The section of help: what is wrong now and what to do about it, a look at everything, and a small item for each worker.
import { button } from "./dialog.js";
import { h } from "./dom.js";
import { ago } from "./format.js";
import { inPageWords, remedyLine } from "./page_words.js";
import { forgetButton, goneWords } from "./silent.js";
import { T } from "./texts.js";
import { needsSettings } from "./worker_card.js";

/**
 * @typedef {import("./api_types.js").Finding} Finding
 * @typedef {import("./store.js").State} State
 *
 * @typedef {{key: string, what: string, words: string, remedy: string, worker: string, host?: string}} Trouble
 */

const OLD_MS = 600_000;
const RANK = { fail: 0, warn: 1, ok: 2 };
const MARKS = { fail: "▲", warn: "◐", ok: "●" };
const COLOURS = { fail: "red", warn: "yellow", ok: "green" };

/**
 * Everything that is wrong now, as the state tells it; what was lost with its computer is not counted once more.
 * @param {State} state
 * @param {number} now_ms
 * @returns {Trouble[]}
 */
export function whatIsWrong(state, now_ms) {
  const { state: table, blobs, one } = state.servers;
  /** @type {(readonly ["one" | "state" | "blobs", import("./api_types.js").ServerHealth])[]} */
  const servers = one
    ? [["one", table]]
    : [
        ["state", table],
        ["blobs", blobs],
      ];
  const gone = Object.values(state.hosts).filter((host) => host.gone_ms > 0);
  const isMissed = (/** @type {string} */ name) => (state.hosts[name]?.gone_ms ?? 0) > 0;
  const failed = Object.values(state.workers).filter(
    (worker) => worker.colour === "red" && !(worker.state === "lost" && isMissed(worker.host)),
  );
  const { master } = state;
  return [
    ...servers
      .filter(([, health]) => !health.up)
      .map(([name, health]) => ({
        key: `server-${name}`,
        what: T.serverNames[name],
        words: health.error?.message ?? T.down,
        remedy: health.error?.remedy ?? "",
        worker: "",
      })),
    ...(master?.session === "failed" ? [{ key: "master", what: T.master, words: master.reason, remedy: "", worker: "" }] : []),
    ...gone.map((host) => ({
      key: `host-${host.name}`,
      what: host.name,
      words: goneWords(host, now_ms),
      remedy: T.gone.remedy,
      worker: "",
      host: host.name,
    })),
    ...failed.map((worker) => ({
      key: `worker-${worker.name}`,
      what: worker.name,
      words: worker.reason || T.workerStates[worker.state],
      remedy: worker.remedy,
      worker: worker.name,
    })),
    ...(state.tunnel.error && state.tunnel.state !== "failed" // one that could not be opened is said where it was tried
      ? [{ key: "tunnel", what: T.tunnel, words: state.tunnel.error.message, remedy: state.tunnel.error.remedy, worker: "" }]
      : []),
  ];
}

/**
 * @param {import("./panel.js").Panel} panel
 * @param {State} state
 */
export function helpView(panel, state) {
  const wrong = whatIsWrong(state, panel.store.now_ms);
  return [
    h(
      "section",
      { key: "now", class: "block", "aria-label": T.wrongNow },
      h("h2", null, wrong.length ? T.wrongNow : T.allWell),
      wrong.map((trouble) => troubleCard(panel, state, trouble)),
    ),
    h(
      "section",
      { key: "doctor", class: "block", "aria-label": T.doctor },
      h("h2", null, T.doctor),
      h("p", { class: "muted" }, T.doctorWords),
      h(
        "div",
        { class: "row wrap" },
        button(panel.busy.has("doctor") ? T.doctorRuns : T.runDoctor, () => examine(panel), {
          class: "first",
          disabled: panel.busy.has("doctor"),
          "data-action": "doctor",
        }),
      ),
      panel.report && report(panel, panel.report),
    ),
    probes(panel, state),
    h(
      "section",
      { key: "common", class: "block", "aria-label": T.common },
      h("h2", null, T.common),
      T.commonTroubles.map(({ symptom, remedy }) => h("details", { key: symptom }, h("summary", null, symptom), h("p", null, remedy))),
    ),
  ];
}

/**
 * @param {import("./panel.js").Panel} panel
 * @param {State} state
 * @param {Trouble} trouble
 */
function troubleCard(panel, state, { key, what, words, remedy, worker, host }) {
  const found = state.workers[worker];
  return h(
    "article",
    { key, class: "card red" },
    h("h3", null, what),
    h("p", { class: "reason red" }, inPageWords(words, found?.editable)),
    remedyLine(remedy, found?.editable),
    host && forgetButton(panel, host),
    found &&
      h(
        "footer",
        { class: "row wrap" },
        found.orders.includes("start") &&
          button(T.orders.start, () => panel.workers.order(found, "start"), {
            class: needsSettings(found) ? "" : "first",
            disabled: panel.busy.has(worker),
            "aria-label": T.actionOf(T.orders.start, worker),
          }),
        button(T.log, () => panel.workers.openLog(found), { "aria-label": T.actionOf(T.log, worker) }),
        found.editable &&
          button(T.edit, () => panel.workers.edit(found), {
            class: needsSettings(found) ? "first" : "",
            "aria-label": T.actionOf(T.edit, worker),
          }),
      ),
  );
}

/** @param {import("./panel.js").Panel} panel */
function examine(panel) {
  return panel.act("doctor", async () => {
    const found = /** @type {import("./api_types.js").Report} */ (await panel.server.change("POST", "doctor"));
    panel.report = { found, at_ms: panel.store.now_ms, isOld: false };
    return found.healthy ? T.healthy : undefined;
  });
}

/**
 * @param {import("./panel.js").Panel} panel
 * @param {NonNullable<import("./panel.js").Panel["report"]>} report
 */
function report(panel, { found: { findings }, at_ms, isOld }) {
  const isDim = isOld || panel.store.now_ms - at_ms > OLD_MS;
  const sorted = [...findings].sort((one, other) => RANK[one.level] - RANK[other.level]);
  return h(
    "div",
    { key: "report", class: isDim ? "report old" : "report" },
    h("p", { class: "muted small" }, T.examined(ago(at_ms, panel.store.now_ms))),
    isDim && h("p", { key: "old", class: "reason yellow", role: "status" }, T.reportOld),
    h(
      "ul",
      { class: "plain-list" },
      sorted.map((finding, place) => findingRow(finding, place)),
    ),
  );
}

/**
 * @param {Finding} finding
 * @param {number} place
 */
function findingRow({ check, level, found, remedy }, place) {
  return h(
    "li",
    { key: `${place}-${check}`, class: "finding", "data-level": level },
    h("span", { class: COLOURS[level], "aria-label": T.levels[level], role: "img" }, MARKS[level]),
    h("div", null, h("p", null, h("strong", null, check), " ", inPageWords(found)), level !== "ok" && remedyLine(remedy)),
  );
}

/**
 * A small item for each worker that takes one.
 * @param {import("./panel.js").Panel} panel
 * @param {State} state
 */
function probes(panel, state) {
  const able = Object.values(state.workers).filter((worker) => worker.orders.includes("probe"));
  if (!able.length) return null;
  return h(
    "section",
    { key: "probes", class: "block", "aria-label": T.probes },
    h("h2", null, T.probes),
    h("p", { class: "muted" }, T.probeWords),
    h(
      "div",
      { class: "row wrap" },
      able.map((worker) =>
        button(T.probe(worker.name), () => panel.workers.order(worker, "probe"), {
          key: worker.name,
          disabled: panel.busy.has(worker.name),
          "data-probe": worker.name,
        }),
      ),
    ),
  );
}
