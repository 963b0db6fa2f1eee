// Short messages about what has just happened; errors stay until they are dismissed, or until servers that were away are back.
import { h } from "./dom.js";
import { inPageWords, remedyLine } from "./page_words.js";
import { T } from "./texts.js";

const LIFE_MS = 6000;
const MOST = 4;
const AWAY = [0, 503]; // nobody answered, or not the server behind

/**
 * @typedef {{id: number, kind: "done" | "error", words: string, remedy: string, passes: boolean}} Notice
 */

/** The messages of one panel. */
export class Notices {
  /** @param {() => void} changed */
  constructor(changed) {
    this.changed = changed;
    /** @type {Notice[]} */
    this.list = [];
    this.count = 0;
    /** What had the focus before it came to a message. @type {HTMLElement | null} */
    this.before = null;
  }

  /** @param {string} words */
  done(words) {
    const notice = this.add("done", words, "");
    setTimeout(() => this.dismiss(notice.id), LIFE_MS);
  }

  /** @param {unknown} error */
  error(error) {
    const { message, remedy = "", status } = /** @type {{message: string, remedy?: string, status?: number}} */ (error);
    if (this.list.some((each) => each.kind === "error" && each.words === message)) return;
    this.add("error", message, remedy, status !== undefined && AWAY.includes(status));
  }

  /** The servers are back: what was said of their absence is over. */
  heal() {
    this.list = this.list.filter((each) => !each.passes);
    this.changed();
  }

  /**
   * @param {"done" | "error"} kind
   * @param {string} words
   * @param {string} remedy
   * @param {boolean} [passes] by itself, when the servers are back
   */
  add(kind, words, remedy, passes = false) {
    const notice = { id: ++this.count, kind, words, remedy, passes };
    this.list = [...this.list, notice].slice(-MOST);
    this.changed();
    return notice;
  }

  /** @param {number} id */
  dismiss(id) {
    this.list = this.list.filter((each) => each.id !== id);
    this.changed();
  }

  /**
   * Remember where the focus was before it came to a message.
   * @param {FocusEvent} event
   */
  came({ relatedTarget }) {
    if (relatedTarget instanceof HTMLElement && !relatedTarget.closest(".notices")) this.before = relatedTarget;
  }

  /**
   * Dismiss a message; the focus goes to the next one, else back to where it was, else to what is chosen around it.
   * @param {MouseEvent} event
   * @param {number} id
   */
  leave({ currentTarget }, id) {
    const closer = /** @type {HTMLElement} */ (currentTarget);
    const around = closer.closest("dialog, .panel");
    const next = [...(closer.closest(".notices")?.querySelectorAll("button") ?? [])].find((other) => other !== closer);
    const back = this.before?.isConnected ? this.before : around?.querySelector("[aria-selected=true], button");
    this.dismiss(id);
    /** @type {HTMLElement | null | undefined} */ (next ?? back)?.focus();
  }

  /** @param {boolean} isHere whether they are shown here; the places are there before what is said, or a screen reader misses that */
  view(isHere) {
    const shown = isHere ? this.list : [];
    const place = (/** @type {Notice["kind"]} */ kind, /** @type {import("./dom.js").Props} */ live) =>
      h(
        "div",
        { key: kind, class: "notice-place", ...live },
        shown.filter((notice) => notice.kind === kind).map((notice) => this.notice(notice)),
      );
    return h("div", { key: "notices", class: "notices" }, place("done", { role: "status" }), place("error", { role: "alert" }));
  }

  /** @param {Notice} notice */
  notice({ id, kind, words, remedy }) {
    const leave = (/** @type {MouseEvent} */ event) => this.leave(event, id);
    const came = (/** @type {FocusEvent} */ event) => this.came(event);
    return h(
      "div",
      { key: id, class: `notice ${kind}` },
      h("p", null, inPageWords(words)),
      remedyLine(remedy),
      h("button", { class: "plain", type: "button", "aria-label": T.dismiss, onclick: leave, onfocus: came }, "✕"),
    );
  }
}
