// Dialogs, the newest on top, in the browser's top layer; Escape closes it, and the focus goes back to where it was.
import { h } from "./dom.js";
import { T } from "./texts.js";

/**
 * @typedef {object} DialogParts
 * @property {string} title
 * @property {() => import("./dom.js").Child[]} content described anew with each change
 * @property {boolean} [wide]
 * @property {() => void} [closed]
 */

/** The place of one panel's dialogs. */
export class DialogPlace {
  /** @param {() => void} changed */
  constructor(changed) {
    this.changed = changed;
    /** @type {{number: number, parts: DialogParts}[]} */
    this.stack = [];
    this.count = 0;
  }

  /** @param {DialogParts} parts */
  open(parts) {
    this.stack.push({ number: ++this.count, parts });
    this.changed();
  }

  /** Close the newest. */
  close() {
    const closed = this.stack.pop();
    closed?.parts.closed?.();
    this.changed();
  }

  /**
   * Ask before something that cannot be undone.
   * @param {{title: string, words: string, action: string}} question
   * @returns {Promise<boolean>}
   */
  confirm({ title, words, action }) {
    return new Promise((answer) => {
      let agreed = false;
      this.open({
        title,
        closed: () => answer(agreed),
        content: () => [
          h("p", null, words),
          h(
            "div",
            { class: "row end" },
            button(T.back, () => this.close()),
            button(action, () => ((agreed = true), this.close()), { class: "danger", "data-action": "confirm" }),
          ),
        ],
      });
    });
  }

  /**
   * Where what had the focus is gone, keys would go to the page around: ComfyUI takes Escape for itself.
   * @param {ShadowRoot} root
   */
  keepFocus(root) {
    if (this.stack.length && !root.activeElement) [...root.querySelectorAll("dialog")].at(-1)?.focus();
  }

  /** @param {(isHere: boolean) => import("./dom.js").Child} notices shown in the newest, which lies above everything else */
  view(notices) {
    return this.stack.map(({ number, parts }, place) =>
      h(
        "dialog",
        {
          key: `dialog-${number}`,
          class: parts.wide ? "dialog wide" : "dialog",
          "aria-label": parts.title,
          tabindex: -1,
          born: showModal,
          oncancel: (/** @type {Event} */ event) => {
            event.preventDefault();
            this.close();
          },
        },
        h(
          "header",
          { class: "row" },
          h("h2", { class: "grow" }, parts.title),
          h("button", { class: "plain", type: "button", "aria-label": T.close, onclick: () => this.close() }, "✕"),
        ),
        h("div", { class: "dialog-body" }, parts.content()),
        notices(place === this.stack.length - 1),
      ),
    );
  }
}

/**
 * The focus goes to what is to be filled in, else to the first button, and only else to what closes it.
 * @param {HTMLDialogElement} dialog
 */
function showModal(dialog) {
  dialog.showModal();
  for (const wanted of ["[autofocus]", ".dialog-body :is(input, select, textarea):enabled", ".dialog-body button:enabled"]) {
    const found = /** @type {HTMLElement | null} */ (dialog.querySelector(wanted));
    found?.focus();
    if (found) break;
  }
  return () => dialog.close();
}

/**
 * A button.
 * @param {string} label
 * @param {() => unknown} press
 * @param {import("./dom.js").Props} [props]
 */
export function button(label, press, props = {}) {
  return h("button", { type: "button", onclick: () => void press(), ...props }, label);
}
