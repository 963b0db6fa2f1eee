// The log of a worker: its last lines, then live; search, only what is wrong, and the whole of it as a file.
import { followEvents } from "./events.js";
import { clock } from "./format.js";
import { keepFile } from "./pictures.js";
import { T } from "./texts.js";

const FIRST_LINES = 2000;
const MOST_LINES = 4000;
const NEAR_END_PX = 40;
const SILENCE_MS = 45_000; // a log without new lines: a server whose Redis is slow says less often that it is there
const WRONG = new Set(["WARNING", "ERROR", "CRITICAL"]);

/**
 * @typedef {import("./api_types.js").LogLine} Line
 *
 * @typedef {object} LogSource
 * @property {string} name of the worker
 * @property {import("./requests.js").Server} server
 * @property {(error: unknown) => void} failed
 */

/** A log in an element; not described anew, because lines only ever come. */
export class LogView {
  /**
   * @param {HTMLElement} place
   * @param {LogSource} source
   */
  constructor(place, { name, server, failed }) {
    this.name = name;
    this.server = server;
    this.failed = failed;
    /** @type {Line[]} */
    this.fresh = [];
    /** Of the last line that is here. */
    this.lastId = "";
    this.words = "";
    this.onlyWrong = false;
    this.frame = 0;
    /** How the stream is, in words. */
    this.link = T.logConnecting;
    this.build(place);
    this.stream = followEvents(
      (signal) => this.open(signal),
      { event: (_, content) => this.take(content.lines), state: (state, error) => this.tell(state, error) },
      { silence_ms: SILENCE_MS },
    );
  }

  /**
   * The stream, behind the last line that is here; first the lines that were there before.
   * @param {AbortSignal} signal
   */
  async open(signal) {
    const path = `workers/${encodeURIComponent(this.name)}/log`;
    if (!this.lastId) {
      const log = /** @type {import("./api_types.js").Log} */ (await this.server.read(path, { lines: FIRST_LINES }, signal));
      this.take(log.lines);
      this.lastId = log.last_id;
    }
    return this.server.stream(`${path}/stream`, signal, { after: this.lastId });
  }

  /** @param {HTMLElement} place */
  build(place) {
    this.search = input("search", T.logSearch, () => this.filter());
    const wrong = input("checkbox", T.logOnlyWrong, () => this.filter());
    this.wrong = wrong;
    const label = element("label", "choice", T.logOnlyWrong);
    label.prepend(wrong);
    const file = element("button", "", T.logDownload);
    file.addEventListener("click", () => this.download());
    const bar = element("div", "row wrap log-bar");
    bar.append(this.search, label, file);
    this.note = element("p", "muted log-note", T.logConnecting);
    this.note.setAttribute("role", "status");
    this.box = element("div", "log");
    this.box.tabIndex = 0;
    this.box.setAttribute("role", "log");
    this.box.setAttribute("aria-live", "off"); // hundreds of lines: read on request
    this.box.setAttribute("aria-label", T.logOf(this.name));
    place.append(bar, this.box, this.note);
  }

  /** @param {Line[]} lines */
  take(lines) {
    if (!lines.length) return;
    this.lastId = lines[lines.length - 1].id;
    this.fresh.push(...lines);
    if (this.fresh.length > MOST_LINES) this.fresh.splice(0, this.fresh.length - MOST_LINES);
    this.frame ||= requestAnimationFrame(() => this.show());
  }

  /**
   * @param {"connecting" | "open" | "broken" | "refused"} state
   * @param {Error} [error]
   */
  tell(state, error) {
    if (state === "open") this.link = T.logLive;
    if (state === "broken" || state === "refused") this.link = T.logBroken(error?.message ?? "");
    this.say();
  }

  /** What was found where something is searched for, and how the stream is where that is not as it should be. */
  say() {
    if (!this.note) return;
    const isSearched = this.words !== "" || this.onlyWrong;
    const found = isSearched ? T.logFound(this.box?.querySelectorAll(".line:not([hidden])").length ?? 0) : "";
    const words = [found, isSearched && this.link === T.logLive ? "" : this.link].filter(Boolean).join(" · ");
    if (this.note.textContent !== words) this.note.textContent = words;
  }

  show() {
    this.frame = 0;
    const box = this.box;
    if (!box) return;
    const isAtEnd = box.scrollHeight - box.scrollTop - box.clientHeight < NEAR_END_PX;
    const part = document.createDocumentFragment();
    for (const line of this.fresh) part.append(this.row(line));
    this.fresh = [];
    box.append(part);
    while (box.childElementCount > MOST_LINES) box.firstElementChild?.remove();
    this.say();
    if (isAtEnd) this.toEnd();
  }

  /** Lines have their true height only when they have been laid out, so once more then. */
  toEnd() {
    const go = () => this.box && (this.box.scrollTop = this.box.scrollHeight);
    go();
    requestAnimationFrame(go);
  }

  /** @param {Line} line */
  row(line) {
    const row = element("div", `line ${line.level.toLowerCase()}`);
    row.append(element("time", "", clock(line.at_ms)), element("span", "", line.text));
    row.dataset.level = line.level;
    row.hidden = !this.fits(row);
    return row;
  }

  /** @param {HTMLElement} row */
  fits(row) {
    if (this.onlyWrong && !WRONG.has(row.dataset.level ?? "")) return false;
    return !this.words || (row.textContent ?? "").toLowerCase().includes(this.words);
  }

  filter() {
    this.words = this.search?.value.trim().toLowerCase() ?? "";
    this.onlyWrong = this.wrong?.checked ?? false;
    for (const row of this.box?.children ?? []) {
      const line = /** @type {HTMLElement} */ (row);
      line.hidden = !this.fits(line);
    }
    this.say();
    this.toEnd();
  }

  async download() {
    try {
      keepFile(await this.server.blob(`workers/${encodeURIComponent(this.name)}/log/file`), `${this.name}.log`);
    } catch (error) {
      this.failed(error);
    }
  }

  end() {
    this.stream.end();
    cancelAnimationFrame(this.frame);
  }
}

/**
 * @param {string} kind
 * @param {string} classes
 * @param {string} [words]
 */
function element(kind, classes, words = "") {
  const made = document.createElement(kind);
  made.className = classes;
  made.textContent = words;
  return made;
}

/**
 * @param {string} type
 * @param {string} label
 * @param {() => void} changed
 */
function input(type, label, changed) {
  const made = document.createElement("input");
  made.type = type;
  made.setAttribute("aria-label", label);
  if (type === "search") made.placeholder = label;
  made.addEventListener("input", changed);
  return made;
}
