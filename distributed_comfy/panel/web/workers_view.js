// The section of workers: cards by host, what can be told to all of them, and the ways to more workers.
import { openAdd } from "./add_worker.js";
import { button } from "./dialog.js";
import { h, memo } from "./dom.js";
import { bytes } from "./format.js";
import { openImport } from "./import_config.js";
import { LogView } from "./log_view.js";
import { agentNote, goneNote, lacksAgent } from "./silent.js";
import { T } from "./texts.js";
import { firstSteps } from "./first_steps.js";
import { workerCard } from "./worker_card.js";
import { openEdit } from "./worker_form.js";

/**
 * @typedef {import("./api_types.js").Worker} Worker
 * @typedef {import("./api_types.js").WorkerOrder} Order
 * @typedef {import("./store.js").State} State
 */

const FEW = 6; // up to so many workers are seen at a glance

/** What the section remembers. */
export class WorkersPlace {
  /** @param {import("./panel.js").Panel} panel */
  constructor(panel) {
    this.panel = panel;
    this.openMenu = "";
    this.words = "";
    this.onlyWrong = false;
  }

  /** @param {State} state */
  view(state) {
    const groups = this.panel.store.workersByHost;
    const count = Object.keys(state.workers).length;
    return [
      this.toolbar(state, count),
      count === 0 && firstSteps(this.panel, state),
      [...hostsToShow(state, groups)].map(([host, workers]) => this.group(state, host, workers)),
    ];
  }

  /**
   * @param {State} state
   * @param {number} count
   */
  toolbar(state, count) {
    const { panel } = this;
    return h(
      "div",
      { key: "toolbar", class: "row wrap toolbar" },
      button(T.addWorker, () => openAdd(panel), { class: "first", "data-action": "add", disabled: panel.isAway }),
      button(T.import, () => openImport(panel), { "data-action": "import", disabled: panel.isAway }),
      count > 0 && button(T.clearAll, () => this.clearAll(), { "data-action": "clear-all", disabled: panel.busy.has("all") }),
      count > FEW && this.filters(state),
    );
  }

  /** @param {State} state */
  filters(state) {
    const wrong = Object.values(state.workers).filter((worker) => worker.colour === "red").length;
    return [
      h("input", {
        key: "words",
        type: "search",
        class: "grow",
        placeholder: T.findWorker,
        "aria-label": T.findWorker,
        oninput: (/** @type {Event} */ event) => this.find(/** @type {HTMLInputElement} */ (event.target).value),
      }),
      h(
        "label",
        { key: "wrong", class: "choice" },
        h("input", { type: "checkbox", onchange: () => ((this.onlyWrong = !this.onlyWrong), this.panel.update()) }),
        T.onlyWrong(wrong),
      ),
    ];
  }

  /** @param {string} words */
  find(words) {
    this.words = words.trim().toLowerCase();
    this.panel.update();
  }

  /** @param {Worker} worker */
  isShown(worker) {
    if (this.onlyWrong && worker.colour !== "red") return false;
    return (
      !this.words ||
      `${worker.name} ${worker.host} ${worker.device} ${worker.use?.name ?? ""} ${worker.tags.join(" ")}`.toLowerCase().includes(this.words)
    );
  }

  /**
   * @param {State} state
   * @param {string} name
   * @param {Worker[]} workers
   */
  group(state, name, workers) {
    const host = state.hosts[name];
    const shown = workers.filter((worker) => this.isShown(worker));
    if (!shown.length && workers.length) return null;
    const memory = host?.resources;
    const isOwn = name === state.host && lacksAgent(state);
    return h(
      "section",
      { key: `host-${name}`, class: "host", "aria-label": T.hostLabel(name) },
      h(
        "h2",
        { class: "row wrap" },
        name,
        (host?.here ?? name === state.host) && h("span", { class: "tag" }, T.thisComputer),
        (!host || host.gone_ms > 0) && h("span", { class: "tag" }, host ? T.gone.tag : T.noAgent),
        h(
          "span",
          { class: "muted small" },
          memory && T.hostMemory(bytes(memory.memory_total_bytes - memory.memory_available_bytes), bytes(memory.memory_total_bytes)),
        ),
      ),
      host && host.gone_ms > 0 && goneNote(this.panel, host),
      isOwn && agentNote(state),
      !workers.length && host && !host.gone_ms && h("p", { class: "muted" }, T.hostWithoutWorkers),
      h(
        "div",
        { class: "cards" },
        shown.map((worker) => this.card(state, worker)),
      ),
    );
  }

  /**
   * @param {State} state
   * @param {Worker} worker
   */
  card(state, worker) {
    const { busy, isAway, store } = this.panel;
    const isBusy = busy.has(worker.name); // so it is, too, while nobody can say how the worker is
    const isOpen = this.openMenu === worker.name;
    const now_ms = store.now_ms;
    const second = worker.items.length || worker.next_start_ms || worker.last_error ? Math.floor(now_ms / 1000) : 0;
    const titles = worker.items.map((item) => state.jobs[item.job]?.title).join();
    const make = () => workerCard({ worker, jobs: state.jobs, isBusy, isAway, isOpen, now_ms, place: this });
    return memo(worker.name, [worker, isBusy, isAway, isOpen, second, titles], make);
  }

  // -- the menu of a card -------------------------------------------------------------------------------------------
  /** @param {string} name */
  toggleMenu(name) {
    this.openMenu = this.openMenu === name ? "" : name;
    this.panel.update();
  }

  closeMenu() {
    this.openMenu = "";
    this.panel.update();
  }

  // -- orders -------------------------------------------------------------------------------------------------------
  /**
   * @param {Worker} worker
   * @param {Order} order
   */
  order(worker, order) {
    return this.panel.act(worker.name, async () => {
      const answer = await this.panel.server.change("POST", `workers/${encodeURIComponent(worker.name)}/orders`, { order });
      if (answer.finding && answer.finding.level !== "ok")
        throw { message: T.probeFailed(worker.name, answer.finding.found), remedy: answer.finding.remedy };
      return answer.text || answer.finding?.found;
    });
  }

  /** @param {Worker} worker */
  async stopNow(worker) {
    if (!(await this.panel.dialog.confirm({ title: T.stopNow, words: T.stopNowWords(worker.name), action: T.stopNow }))) return;
    await this.panel.act(worker.name, async () => {
      const answer = await this.panel.server.change("POST", `workers/${encodeURIComponent(worker.name)}/orders`, {
        order: "stop",
        at_once: true,
      });
      return answer.text;
    });
  }

  /** @param {Worker} worker */
  async remove(worker) {
    if (!(await this.panel.dialog.confirm({ title: T.removeTitle(worker.name), words: T.removeWords, action: T.remove }))) return;
    await this.panel.act(
      worker.name,
      async () => (await this.panel.server.change("DELETE", `workers/${encodeURIComponent(worker.name)}`)).text,
    );
  }

  clearAll() {
    return this.panel.act("all", async () => {
      const answer = /** @type {import("./api_types.js").OrdersAnswer} */ (
        await this.panel.server.change("POST", "orders", { order: "clear-memory" })
      );
      for (const [name, error] of Object.entries(answer.refused))
        this.panel.notices.error({ message: T.refusedBy(name, error.message), remedy: error.remedy });
      return T.cleared(Object.keys(answer.told).length, answer.master);
    });
  }

  // -- dialogs ------------------------------------------------------------------------------------------------------
  /** @param {Worker} worker */
  openLog({ name }) {
    const { server, notices, dialog } = this.panel;
    dialog.open({
      title: T.logOf(name),
      wide: true,
      content: () => [
        h("div", {
          class: "log-place",
          own: (/** @type {HTMLElement} */ place) => {
            const log = new LogView(place, { name, server, failed: (error) => notices.error(error) });
            return () => log.end();
          },
        }),
      ],
    });
  }

  /** @param {Worker} worker */
  edit(worker) {
    openEdit(this.panel, worker);
  }

  /** @param {Worker} worker */
  showFacts({ name }) {
    this.panel.dialog.open({ title: name, content: () => [factList(this.panel.store.state?.workers[name])] });
  }
}

/**
 * Hosts in order: those with workers, then those of which only the agent is there.
 * @param {State} state
 * @param {Map<string, Worker[]>} groups
 * @returns {Map<string, Worker[]>}
 */
function hostsToShow(state, groups) {
  const shown = new Map(groups);
  const more = [...Object.keys(state.hosts), ...(lacksAgent(state) ? [state.host] : [])];
  for (const name of more) if (!shown.has(name)) shown.set(name, []);
  return shown;
}

/**
 * Where its ComfyUI is, as it is written down for it.
 * @param {Worker} worker
 * @returns {[string, string][]}
 */
function ownComfy({ engine, configuration }) {
  if (!configuration || engine === "attach" || engine === "builtin") return [];
  return [
    [T.treeFact, configuration.comfyui_path || T.byItsComputer],
    [T.pythonFact, configuration.comfyui_python || T.byItsComputer],
  ];
}

/** @param {Worker | undefined} worker */
function factList(worker) {
  if (!worker) return h("p", null, T.workerGone);
  /** @type {[string, string | number][]} */
  const facts = [
    [T.factNames.host, worker.host],
    [T.factNames.keeper, T.keepers[worker.keeper]],
    [T.factNames.device, [worker.device, worker.use?.name].filter(Boolean).join(" · ")],
    [T.factNames.device_class, worker.device_class],
    [T.factNames.engine, [worker.engine, worker.engine_version, worker.commit.slice(0, 10)].filter(Boolean).join(" ")],
    ...ownComfy(worker),
    [T.factNames.version, worker.version],
    [T.factNames.pid, worker.pid || ""],
    [T.factNames.cores, worker.cores],
    [T.factNames.threads, worker.threads || ""],
    [T.factNames.log_folder, worker.log_folder],
    [T.factNames.node_classes, worker.node_classes || ""],
    [T.factNames.model_files, worker.model_files || ""],
    [T.factNames.models, worker.models.map((model) => `${model.name} (${bytes(model.loaded_bytes)})`).join(", ")],
    [
      T.factNames.packs,
      Object.entries(worker.packs)
        .map(([name, version]) => `${name} ${version}`)
        .join(", "),
    ],
  ];
  return h(
    "dl",
    { class: "facts" },
    facts.filter(([, value]) => value !== "").map(([name, value]) => [h("dt", null, name), h("dd", null, String(value))]),
  );
}
