// The section about what serves this page: the ComfyUI that is the master, Redis, hosts and invitations, settings.
import { button } from "./dialog.js";
import { h } from "./dom.js";
import { ago, bytes, percent } from "./format.js";
import { openAdd } from "./add_worker.js";
import { inPageWords, remedyLine } from "./page_words.js";
import { changeSettings, showSettings } from "./settings_view.js";
import { agentNote, goneNote, lacksAgent } from "./silent.js";
import { T } from "./texts.js";
import { tunnelView } from "./tunnel_view.js";
import { bar } from "./worker_card.js";

/**
 * @typedef {import("./panel.js").Panel} Panel
 * @typedef {import("./store.js").State} State
 */

const SWITCHES = /** @type {const} */ (["participate", "auto_launch", "stop_workers", "debug"]);

/**
 * @param {Panel} panel
 * @param {State} state
 */
export function computerView(panel, state) {
  return h(
    "div",
    { class: "cards computer" },
    state.master && masterCard(panel, state.master),
    workCard(panel, state),
    serversCard(state),
    hostsCard(panel, state),
    h(
      "section",
      { key: "tunnel", class: "card", "aria-label": T.tunnel },
      h("h2", null, T.tunnel),
      h("p", { class: "muted small" }, T.tunnelWords),
      tunnelView(panel, state.tunnel),
    ),
    h(
      "section",
      { key: "settings", class: "card", "aria-label": T.settings },
      h("h2", null, T.settings),
      h("p", { class: "muted small" }, T.settingsWords),
      h(
        "div",
        { class: "row wrap" },
        button(T.changeSettings, () => changeSettings(panel), { "data-action": "change-settings" }),
        button(T.showSettings, () => showSettings(panel)),
      ),
    ),
  );
}

/**
 * @param {Panel} panel
 * @param {import("./api_types.js").Master} master
 */
function masterCard(panel, master) {
  const change = (/** @type {import("./api_types.js").OptionChanges} */ changes) =>
    panel.act("master", async () => void (await panel.server.change("PATCH", "master", changes)));
  const isBusy = panel.busy.has("master");
  const { options } = master;
  return h(
    "section",
    { key: "master", class: "card", "aria-label": T.master },
    h("h2", null, T.master),
    h("p", { class: "muted small" }, T.masterFacts(master.version, master.address, master.device)),
    h(
      "p",
      { role: "status" },
      h(
        "span",
        { class: `state ${{ ready: "green", starting: "yellow", failed: "red", off: "grey" }[master.session]}` },
        T.sessions[master.session],
      ),
      " ",
      T.masterQueue(master.running, master.waiting),
    ),
    master.reason && h("p", { key: "reason", class: "reason red" }, inPageWords(master.reason)),
    master.agent_reason && h("p", { key: "agent", class: "reason red" }, inPageWords(master.agent_reason)),
    SWITCHES.map((name) =>
      h(
        "label",
        { key: name, class: "choice switch" },
        h("input", {
          type: "checkbox",
          role: "switch",
          checked: options[name],
          disabled: isBusy,
          "data-option": name,
          onchange: () => change({ [name]: !options[name] }),
        }),
        h("span", null, h("strong", null, T.options[name].label), h("span", { class: "small muted" }, T.options[name].words)),
      ),
    ),
    h(
      "label",
      { key: "ordinary", class: "choice switch" },
      h("input", {
        type: "checkbox",
        role: "switch",
        checked: options.ordinary === true,
        indeterminate: options.ordinary === null,
        disabled: isBusy,
        "data-option": "ordinary",
        onchange: () => change({ ordinary: options.ordinary !== true }),
      }),
      h("span", null, h("strong", null, T.options.ordinary.label), h("span", { class: "small muted" }, T.options.ordinary.words)),
    ),
    options.ordinary && master.ordinary && h("p", { key: "why-not", class: "reason yellow" }, inPageWords(master.ordinary)),
  );
}

/**
 * What ends or frees work everywhere.
 * @param {Panel} panel
 * @param {State} state
 */
function workCard(panel, state) {
  const running = Object.values(state.jobs).filter((job) => !job.ended_ms);
  const mine = running.filter((job) => job.mine);
  return h(
    "section",
    { key: "work", class: "card", "aria-label": T.workTitle },
    h("h2", null, T.workTitle),
    h("p", { class: "muted small" }, T.workWords(mine.length, running.length)),
    h(
      "div",
      { class: "row wrap" },
      mine.slice(0, 1).map((job) =>
        button(T.interruptJob(job.title || job.id.slice(0, 8)), () => interrupt(panel, "job", 1, job.id), {
          key: "job",
          disabled: panel.busy.has("interrupt"),
          "data-action": "interrupt-job",
        }),
      ),
      button(T.interruptMine, () => interrupt(panel, "mine", mine.length), {
        key: "mine",
        class: "danger",
        disabled: panel.busy.has("interrupt") || (!mine.length && !state.master?.running),
        "data-action": "interrupt-mine",
      }),
      button(T.interruptAll, () => interrupt(panel, "all", running.length), {
        key: "all",
        class: "danger",
        disabled: panel.busy.has("interrupt") || (!running.length && !state.master?.running),
        "data-action": "interrupt-all",
      }),
      button(T.clearAll, () => panel.workers.clearAll(), {
        key: "clear",
        disabled: panel.busy.has("all"),
        "data-action": "clear-all",
      }),
    ),
  );
}

/**
 * @param {Panel} panel
 * @param {"job" | "mine" | "all"} what
 * @param {number} count
 * @param {string} [job]
 */
async function interrupt(panel, what, count, job) {
  const words = T.interruptWords(count, panel.store.state?.master?.running ?? 0);
  if (!(await panel.dialog.confirm({ title: T.interruptTitle[what], words, action: T.interruptNow }))) return;
  await panel.act("interrupt", async () => {
    const answer = /** @type {import("./api_types.js").Interrupted} */ (
      await panel.server.change("POST", "master/interrupt", { what, ...(job ? { job } : {}) })
    );
    for (const [name, error] of Object.entries(answer.refused))
      panel.notices.error({ message: T.refusedBy(name.slice(0, 8), error.message), remedy: error.remedy });
    return T.interrupted(answer.jobs.length, answer.prompts);
  });
}

/** @param {State} state */
function serversCard({ servers }) {
  return h(
    "section",
    { key: "servers", class: "card", "aria-label": T.redis },
    h("h2", null, T.redis),
    h(
      "p",
      { class: "small" },
      h("code", null, servers.shown),
      " ",
      h("span", { class: "muted" }, servers.invited_to ? T.invitedTo(servers.invited_to) : ""),
    ),
    serverRow("state", servers.state, T.serverNames[servers.one ? "one" : "state"]),
    !servers.one && serverRow("blobs", servers.blobs, T.serverNames.blobs),
  );
}

/**
 * @param {"state" | "blobs"} name
 * @param {import("./api_types.js").ServerHealth} health
 * @param {string} label
 */
function serverRow(name, { up, error, version, used_bytes, limit_bytes, kept }, label) {
  const memory = used_bytes == null ? "" : limit_bytes ? T.memoryOf("", bytes(used_bytes), bytes(limit_bytes)) : bytes(used_bytes);
  return h(
    "div",
    { key: name, class: "server" },
    h(
      "p",
      { class: "row" },
      h("strong", { class: "grow" }, label),
      h("span", { class: `state ${up ? "green" : "red"}`, "data-server": name }, up ? T.up : T.down),
    ),
    h(
      "p",
      { class: "small muted" },
      [version && T.serverVersion(version), memory, name === "state" && kept !== null && (kept ? T.kept : T.notKept)]
        .filter(Boolean)
        .join(" · "),
    ),
    used_bytes != null && limit_bytes ? bar(percent(used_bytes, limit_bytes), label) : null,
    error && h("p", { key: "error", class: "reason red" }, inPageWords(error.message)),
    remedyLine(error?.remedy),
  );
}

/**
 * @param {Panel} panel
 * @param {State} state
 */
function hostsCard(panel, state) {
  const hosts = Object.values(state.hosts);
  return h(
    "section",
    { key: "hosts", class: "card", "aria-label": T.computers },
    h("h2", null, T.computers),
    hosts.length === 0 && h("p", { class: "muted" }, T.noHosts),
    lacksAgent(state) && h("div", { key: "own" }, h("p", null, h("strong", null, T.sections.computer)), agentNote(state)),
    h(
      "ul",
      { class: "plain-list" },
      hosts.map((host) =>
        h(
          "li",
          { key: host.name },
          h(
            "p",
            { class: "row wrap" },
            h("strong", null, host.name),
            host.here && h("span", { class: "tag" }, T.thisComputer),
            host.gone_ms > 0 && h("span", { class: "tag" }, T.gone.tag),
            h("span", { class: "muted small" }, T.hostFacts(host.system, host.cpus, host.workers.length)),
          ),
          h("p", { class: "small muted" }, host.devices.map((device) => T.deviceChoice(device)).join(", ")),
          host.gone_ms > 0 && goneNote(panel, host),
          host.resources &&
            h(
              "p",
              { class: "small muted" },
              T.hostResources(bytes(host.resources.memory_available_bytes), bytes(host.resources.disk_free_bytes)),
            ),
        ),
      ),
    ),
    h(
      "div",
      { class: "row wrap" },
      button(T.addComputer, () => openAdd(panel, "network"), { "data-action": "invite", disabled: panel.isAway }),
      state.invites !== 0 && button(T.showInvites(state.invites), () => showInvites(panel), { disabled: panel.isAway }),
    ),
  );
}

/** @param {Panel} panel */
function showInvites(panel) {
  /** @type {import("./api_types.js").Invite[] | null} */
  let invites = null;
  const read = () =>
    panel.act("invites", async () => {
      invites = (await panel.server.read("invites")).invites;
    });
  const revoke = async (/** @type {string} */ host) => {
    if (!(await panel.dialog.confirm({ title: T.revokeTitle(host), words: T.revokeWords, action: T.revoke }))) return;
    if (await panel.act("invites", async () => (await panel.server.change("DELETE", `invites/${encodeURIComponent(host)}`)).text))
      await read();
  };
  void read();
  panel.dialog.open({
    title: T.invites,
    content: () => [
      invites === null && h("p", { class: "muted" }, T.loading),
      invites?.length === 0 && h("p", { class: "muted" }, T.noInvites),
      h(
        "ul",
        { class: "plain-list" },
        (invites ?? []).map((invite) =>
          h(
            "li",
            { key: invite.host, class: "row wrap" },
            h(
              "div",
              { class: "grow" },
              h("p", null, h("strong", null, invite.host)),
              h("p", { class: "small muted" }, inviteWords(invite, panel.store.now_ms)),
            ),
            button(T.revoke, () => revoke(invite.host), {
              class: "danger",
              disabled: panel.busy.has("invites"),
              "aria-label": T.revokeTitle(invite.host),
            }),
          ),
        ),
      ),
    ],
  });
}

/**
 * @param {import("./api_types.js").Invite} invite
 * @param {number} now_ms
 */
function inviteWords(invite, now_ms) {
  if (invite.connections > 0) return T.inviteConnected(invite.connections, invite.url);
  if (invite.joined_ms) return T.inviteAway(ago(invite.seen_ms || invite.joined_ms, now_ms));
  return invite.expires_ms > now_ms ? T.inviteWaits(new Date(invite.expires_ms).toLocaleString()) : T.inviteExpired;
}
