// A long list of which only the rows in sight exist.  All rows are equally high; arrow keys move among them, also out of sight.
import { h } from "./dom.js";

const SPARE_ROWS = 6;

/**
 * What a list remembers between two descriptions of it.
 */
export class ListWindow {
  /** @param {() => void} changed describe it anew */
  constructor(changed) {
    this.changed = changed;
    this.top = 0;
    this.height = 600;
    /** Key of the row that the Tab key reaches. */
    this.active = "";
    this.toFocus = "";
    /** @type {HTMLElement | null} */
    this.box = null;
  }

  /**
   * Follow the size of the element that scrolls.
   * @param {HTMLElement} box
   */
  follow(box) {
    this.box = box;
    const watcher = new ResizeObserver(() => {
      if (box.clientHeight && box.clientHeight !== this.height) {
        this.height = box.clientHeight;
        this.changed();
      }
    });
    watcher.observe(box);
    return () => {
      watcher.disconnect();
      this.box = null;
      this.top = 0;
    };
  }
}

/**
 * @template Item
 * @typedef {object} ListParts
 * @property {string} label for screen readers
 * @property {Item[]} items
 * @property {(item: Item) => string} keyOf
 * @property {number} rowHeight px
 * @property {number} [gap] px of a row that stay empty; 0 if absent
 * @property {number} [perRow] items side by side; 1 if absent
 * @property {(item: Item, focusable: import("./dom.js").Props) => import("./dom.js").Description} row with the props that its element needs
 */

/**
 * Describe the rows in sight.
 * @template Item
 * @param {ListWindow} window
 * @param {ListParts<Item>} parts
 */
export function windowedRows(window, { items, keyOf, rowHeight, row, gap = 0, perRow = 1 }) {
  const rows = Math.ceil(items.length / perRow);
  const first = Math.max(0, Math.floor(window.top / rowHeight) - SPARE_ROWS);
  const end = Math.min(rows, Math.ceil((window.top + window.height) / rowHeight) + SPARE_ROWS);
  const shown = items.slice(first * perRow, end * perRow);
  const isActiveThere = items.some((item) => keyOf(item) === window.active);
  return shown.map((item, place) => {
    const index = first * perRow + place;
    const key = keyOf(item);
    const reached = isActiveThere ? key === window.active : index === 0 || (place === 0 && first > 0);
    const across = perRow === 1 ? "" : `; width: ${100 / perRow}%; left: ${(100 / perRow) * (index % perRow)}%`;
    const style = `transform: translateY(${Math.floor(index / perRow) * rowHeight}px); height: ${rowHeight - gap}px${across}`;
    const props = {
      key,
      style,
      "data-key": key,
      role: "listitem",
      "aria-setsize": items.length,
      "aria-posinset": index + 1,
      tabindex: reached ? 0 : -1,
    };
    return row(item, props);
  });
}

/**
 * A box that scrolls, with the rows in sight.
 * @template Item
 * @param {ListWindow} window
 * @param {ListParts<Item>} parts
 */
export function windowedList(window, parts) {
  const { label, items, keyOf, rowHeight, perRow = 1 } = parts;
  const total = Math.ceil(items.length / perRow) * rowHeight;
  queueMicrotask(() => focusWanted(window));
  return h(
    "div",
    {
      class: "window",
      born: (/** @type {HTMLElement} */ box) => window.follow(box),
      onscroll: (/** @type {Event} */ event) => seeScroll(window, /** @type {HTMLElement} */ (event.currentTarget)),
      onkeydown: (/** @type {KeyboardEvent} */ event) => move(window, event, items.map(keyOf), rowHeight, perRow),
    },
    h("div", { class: "window-rows", role: "list", "aria-label": label, style: `height: ${total}px` }, windowedRows(window, parts)),
  );
}

/**
 * @param {ListWindow} window
 * @param {HTMLElement} box
 */
function seeScroll(window, box) {
  if (window.top !== box.scrollTop) {
    window.top = box.scrollTop;
    window.changed();
  }
}

/**
 * @param {ListWindow} window
 * @param {KeyboardEvent} event
 * @param {string[]} keys
 * @param {number} rowHeight
 * @param {number} perRow
 */
function move(window, event, keys, rowHeight, perRow) {
  const target = /** @type {HTMLElement} */ (event.target);
  const from = keys.indexOf(target.dataset?.key ?? "");
  if (from < 0) return;
  const page = Math.max(1, Math.floor(window.height / rowHeight)) * perRow;
  /** @type {{[key: string]: number}} */
  const steps = { ArrowDown: perRow, ArrowUp: -perRow, PageDown: page, PageUp: -page, Home: -from, End: keys.length };
  if (perRow > 1) Object.assign(steps, { ArrowRight: 1, ArrowLeft: -1 });
  const step = steps[event.key];
  if (step === undefined) return;
  event.preventDefault();
  const to = Math.max(0, Math.min(keys.length - 1, from + step));
  window.active = window.toFocus = keys[to];
  const top = Math.floor(to / perRow) * rowHeight;
  if (window.box) {
    if (top < window.box.scrollTop) window.box.scrollTop = top;
    else if (top + rowHeight > window.box.scrollTop + window.height) window.box.scrollTop = top + rowHeight - window.height;
    window.top = window.box.scrollTop;
  }
  window.changed();
}

/** @param {ListWindow} window */
function focusWanted(window) {
  const { toFocus, box } = window;
  window.toFocus = ""; // a row that comes into sight later is not waited for: the focus may be in a field by then
  if (!toFocus || !box) return;
  const row = [...box.querySelectorAll("[data-key]")].find((each) => /** @type {HTMLElement} */ (each).dataset.key === toFocus);
  /** @type {HTMLElement | undefined} */ (row)?.focus({ preventScroll: true });
}
