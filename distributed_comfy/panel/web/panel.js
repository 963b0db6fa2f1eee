// The panel: one element that shows workers, jobs, this computer and help, in a page of its own or in ComfyUI's sidebar.
//
// Everything lies in a shadow root, so neither the styles of the page around it nor ours reach each other.
import { computerView } from "./computer_view.js";
import { DialogPlace, button } from "./dialog.js";
import { h, patch } from "./dom.js";
import { helpView, whatIsWrong } from "./help_view.js";
import { JobsPlace } from "./jobs_view.js";
import { Notices } from "./notices.js";
import { inPageWords } from "./page_words.js";
import { Pictures } from "./pictures.js";
import { Busy, isSilent, timeOf } from "./silent.js";
import { Store } from "./store.js";
import { T } from "./texts.js";
import { tokenForm } from "./token_form.js";
import { WorkersPlace } from "./workers_view.js";

const TICK_MS = 1000;
const SECTIONS = /** @type {const} */ (["workers", "jobs", "computer", "help"]);

/**
 * @typedef {typeof SECTIONS[number]} Section
 *
 * @typedef {object} Surroundings
 * @property {import("./requests.js").Server} server
 * @property {"page" | "comfyui"} kind
 * @property {(token: string) => void} useToken called with the one that was typed, where the server refuses that of before
 */

/** One panel. */
export class Panel {
  /**
   * @param {HTMLElement} place
   * @param {Surroundings} surroundings
   */
  constructor(place, { server, kind, useToken }) {
    this.server = server;
    this.kind = kind;
    this.useToken = useToken;
    this.place = place;
    /** @type {Section} */
    this.section = "workers";
    /** Orders that are under way: `worker name` or `job id`. */
    this.busy = new Busy(() => this.isAway);
    /** Whether the servers were there when it was looked last. */
    this.wasWell = true;
    /**
     * What the last look at everything found; old: servers have gone or come since.
     * @type {{found: import("./api_types.js").Report, at_ms: number, isOld: boolean} | null}
     */
    this.report = null;
    this.frame = 0;
    const changed = () => this.update();
    this.notices = new Notices(changed);
    this.dialog = new DialogPlace(changed);
    this.store = new Store(server, changed);
    this.pictures = new Pictures(server, changed);
    this.workers = new WorkersPlace(this);
    this.jobs = new JobsPlace(this);
    this.root = place.shadowRoot ?? place.attachShadow({ mode: "open" });
    this.ready = this.dress();
    keepKeys(place);
    this.ticker = setInterval(changed, TICK_MS); // what shows how long something takes
    this.store.follow();
  }

  async dress() {
    const styles = new CSSStyleSheet();
    this.root.adoptedStyleSheets = [styles];
    const answer = await fetch(new URL("panel.css", import.meta.url));
    styles.replaceSync(await answer.text());
    this.update();
  }

  end() {
    clearInterval(this.ticker);
    cancelAnimationFrame(this.frame);
    this.jobs.detail.end();
    this.store.end();
    this.pictures.end();
    patch(this.root, []);
  }

  /** Describe everything anew in the next frame. */
  update() {
    this.frame ||= requestAnimationFrame(() => {
      this.frame = 0;
      this.show();
    });
  }

  /** Whether Redis does not answer, so nothing can be told to anybody. */
  get isAway() {
    const { state } = this.store;
    return state !== null && isSilent(state.servers.state);
  }

  /** Whether what is shown is what was known before, because nobody can say how everything is now. */
  get isOld() {
    const { state } = this.store;
    return state !== null && !state.servers.state.up;
  }

  /** Where servers have gone or come back, what was found before is old, and what was said of their absence is over. */
  noteOutages() {
    const { connection } = this.store;
    const isWell = connection === "connecting" ? this.wasWell : connection === "open" && !this.isOld;
    if (isWell === this.wasWell) return;
    this.wasWell = isWell;
    if (this.report) this.report.isOld = true;
    if (isWell) this.notices.heal();
  }

  show() {
    this.noteOutages();
    const dialogs = this.dialog.view((isHere) => this.notices.view(isHere));
    const parts = [this.header(), this.tabs(), this.trouble(), this.main(), dialogs, this.notices.view(!dialogs.length)];
    patch(this.root, [h("div", { key: "panel", class: `panel ${this.kind}` }, parts)]);
    this.dialog.keepFocus(this.root);
  }

  /** @param {Section} section */
  go(section) {
    this.section = section;
    this.update();
  }

  /**
   * Carry something out, and say how it went.
   * @param {string} name of the worker or job that it concerns, whose buttons wait meanwhile
   * @param {() => Promise<string | void>} work gives what to say
   * @returns {Promise<boolean>}
   */
  async act(name, work) {
    if (this.busy.isUnderWay(name)) return false;
    const pressed = /** @type {HTMLElement | null} */ (this.root.activeElement);
    this.busy.add(name);
    this.update();
    try {
      const words = await work();
      if (words) this.notices.done(words);
      return true;
    } catch (error) {
      this.notices.error(error);
      return false;
    } finally {
      this.busy.delete(name);
      this.update();
      requestAnimationFrame(() => this.isFocusFree() && pressed?.isConnected && pressed.focus()); // which it has lost while it waited
    }
  }

  /** Whether nothing has the focus, neither in the panel nor around it: a field of ComfyUI keeps it. */
  isFocusFree() {
    const around = document.activeElement;
    return !this.root.activeElement && (!around || around === document.body || around === this.place);
  }

  header() {
    const state = this.store.state;
    return h(
      "header",
      { class: "top row" },
      this.kind === "page" && h("h1", null, T.product),
      h("p", { class: "muted grow summary" }, state ? this.summary(state) : ""),
      this.link(),
    );
  }

  /** @param {import("./store.js").State} state */
  summary(state) {
    const since_ms = state.servers.state.down_since_ms;
    return this.isOld
      ? T.summaryUnknown(Object.keys(state.workers).length, since_ms ? timeOf(since_ms, this.store.now_ms) : "")
      : T.summary(summaryOf(state));
  }

  link() {
    const { connection } = this.store;
    const isOld = connection === "open" && this.isOld;
    const why = this.isAway ? T.redisAway : T.stateUnknown;
    return h("span", { class: `link ${isOld ? "away" : connection}`, role: "status" }, isOld ? why : T.connection[connection]);
  }

  tabs() {
    const wrong = this.store.state ? whatIsWrong(this.store.state, this.store.now_ms).length : 0;
    return h(
      "div",
      {
        class: "tabs",
        role: "tablist",
        "aria-label": T.product,
        onkeydown: (/** @type {KeyboardEvent} */ event) => this.moveTab(event),
      },
      SECTIONS.map((section) =>
        h(
          "button",
          {
            key: section,
            id: `tab-${section}`,
            type: "button",
            role: "tab",
            "aria-selected": String(this.section === section),
            "aria-controls": "section",
            tabindex: this.section === section ? 0 : -1,
            onclick: () => this.go(section),
          },
          section === "computer" && this.kind === "comfyui" ? T.masterSection : T.sections[section],
          section === "help" && wrong > 0 && h("span", { class: "count", "aria-label": T.thingsWrong(wrong) }, String(wrong)),
        ),
      ),
    );
  }

  /** @param {KeyboardEvent} event */
  moveTab(event) {
    const from = SECTIONS.indexOf(this.section);
    const steps = /** @type {Record<string, number>} */ ({ ArrowRight: 1, ArrowLeft: -1, Home: -from, End: SECTIONS.length - 1 - from });
    if (!(event.key in steps)) return;
    event.preventDefault();
    const to = SECTIONS[(from + steps[event.key] + SECTIONS.length) % SECTIONS.length];
    this.go(to);
    const tab = this.root.getElementById(`tab-${to}`);
    tab?.focus();
  }

  /** What is wrong with the connection, or with Redis. */
  trouble() {
    const { connection, error, state } = this.store;
    const failure = /** @type {import("./requests.js").Failure | null} */ (error);
    if (connection !== "open" && failure?.status === 401) {
      const isWrong = connection === "refused" && this.server.hadToken;
      return h("div", { key: "token", class: "banner bad" }, tokenForm(this.kind, this.useToken, isWrong));
    }
    if (connection !== "open" && failure) {
      const again = button(T.tryNow, () => this.store.again());
      return banner(state ? T.lostServer : "", failure.message, failure.remedy || T.lostServerRemedy, again);
    }
    if (connection === "broken")
      return banner(
        T.lostServer,
        "",
        T.lostServerRemedy,
        button(T.tryNow, () => this.store.again()),
      );
    for (const health of state ? [state.servers.state, state.servers.blobs] : []) {
      if (!health.up) {
        const since = health.down_since_ms ? T.redisDownSince(timeOf(health.down_since_ms, this.store.now_ms)) : T.redisDown;
        return banner(isSilent(health) ? since : "", health.error?.message ?? "", health.error?.remedy ?? "");
      }
    }
    return null;
  }

  main() {
    const { state, connection } = this.store;
    return h(
      "main",
      { key: "main" },
      h(
        "div",
        { key: `section-${this.section}`, id: "section", class: "section", role: "tabpanel", "aria-labelledby": `tab-${this.section}` },
        state ? this.content(state) : connection === "connecting" && h("p", { class: "muted" }, T.loading),
      ),
    );
  }

  /** @param {import("./store.js").State} state */
  content(state) {
    if (this.section === "workers") return this.workers.view(state);
    if (this.section === "jobs") return this.jobs.view();
    if (this.section === "computer") return computerView(this, state);
    return helpView(this, state);
  }
}

/**
 * @param {string} title
 * @param {string} words
 * @param {string} remedy
 * @param {...import("./dom.js").Child} more
 */
function banner(title, words, remedy, ...more) {
  return h(
    "div",
    { key: "trouble", class: "banner bad", role: "alert" },
    h("p", null, h("strong", null, title), " ", inPageWords(words)),
    remedy && h("p", null, inPageWords(remedy)),
    ...more,
  );
}

/** @param {import("./store.js").State} state */
function summaryOf(state) {
  const workers = Object.values(state.workers);
  const jobs = Object.values(state.jobs);
  return {
    working: workers.filter((worker) => worker.colour === "green").length,
    workers: workers.length,
    running: jobs.filter((job) => job.state === "running").length,
    waiting: jobs.filter((job) => !job.ended_ms && job.state !== "running").length,
  };
}

/**
 * Keys and pasted text that are meant for the panel go no further: ComfyUI would take them for its canvas.
 * @param {HTMLElement} place
 */
function keepKeys(place) {
  for (const kind of ["keydown", "keyup", "keypress", "paste", "copy", "cut"])
    place.addEventListener(kind, (event) => event.stopPropagation());
}
