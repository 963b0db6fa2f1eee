// A worker as a card: how it is and why, what it does, how full its memory is, and what it can be told.
import { button } from "./dialog.js";
import { h } from "./dom.js";
import { ago, bytes, duration, percent } from "./format.js";
import { inPageWords, remedyLine } from "./page_words.js";
import { timeOf } from "./silent.js";
import { T } from "./texts.js";

/**
 * @typedef {import("./api_types.js").Worker} Worker
 * @typedef {import("./api_types.js").WorkerOrder} Order
 *
 * @typedef {object} CardParts
 * @property {Worker} worker
 * @property {Record<string, import("./api_types.js").Job>} jobs
 * @property {boolean} isBusy an order is under way
 * @property {boolean} isAway Redis does not answer
 * @property {boolean} isOpen its menu
 * @property {number} now_ms
 * @property {import("./workers_view.js").WorkersPlace} place
 */

const FIRST_ORDERS = /** @type {const} */ (["start", "enable", "resume", "stop", "drain"]);
const MENU_ORDERS = /** @type {const} */ ([
  "start",
  "stop",
  "restart",
  "drain",
  "resume",
  "enable",
  "disable",
  "clear-memory",
  "probe",
  "look",
]);
const MARKS = { green: "●", yellow: "◐", red: "▲", grey: "○" };

/** @param {CardParts} parts */
export function workerCard(parts) {
  const { worker, now_ms } = parts;
  return h(
    "article",
    {
      class: `card ${worker.colour}${worker.state === "unknown" ? " unknown" : ""}`,
      "aria-label": T.cardLabel(worker.name, T.workerStates[worker.state]),
      "data-worker": worker.name,
    },
    h(
      "header",
      { class: "row" },
      h("h3", { class: "grow ellipsis", title: worker.name }, worker.name),
      h(
        "span",
        { class: `state ${worker.colour}`, "data-state": worker.state },
        h("span", { "aria-hidden": "true" }, MARKS[worker.colour]),
        " ",
        stateWords(worker, now_ms),
      ),
    ),
    deviceLine(worker),
    why(worker),
    memoryBar(worker),
    worker.items.map((item) => itemRow(parts, item)),
    facts(parts),
    footer(parts),
  );
}

/**
 * @param {Worker} worker
 * @param {number} now_ms
 */
function stateWords(worker, now_ms) {
  if (worker.state === "backing-off" && worker.next_start_ms > now_ms)
    return T.startsAgainIn(duration((worker.next_start_ms - now_ms) / 1000));
  if (worker.state === "unknown" && worker.since_ms) return T.unknownSince(timeOf(worker.since_ms, now_ms));
  return T.workerStates[worker.state];
}

/** @param {Worker} worker */
function deviceLine({ device, engine, use }) {
  const model = use?.name && use.name !== device ? use.name : "";
  return h(
    "p",
    { class: "muted ellipsis device" },
    [device, model, engine === "comfyui" ? "" : (T.engines[engine] ?? engine)].filter(Boolean).join(" · "),
  );
}

/** @param {Worker} worker */
function why(worker) {
  const isQuiet = worker.colour === "green" || worker.colour === "grey";
  return [
    worker.reason && h("p", { key: "reason", class: isQuiet ? "reason" : `reason ${worker.colour}` }, inPageWords(worker.reason, worker.editable)),
    remedyLine(worker.remedy, worker.editable),
    worker.outdated && h("p", { key: "outdated", class: "remedy" }, T.outdated),
  ];
}

/** @param {Worker} worker */
function memoryBar({ device, use, host_use }) {
  const own = use?.used_bytes != null && use.total_bytes ? { label: T.vram, used: use.used_bytes, total: use.total_bytes } : null;
  const shown = own ?? (host_use?.total_bytes ? { label: T.ram, used: host_use.used_bytes, total: host_use.total_bytes } : null);
  if (!shown) return null;
  const part = percent(shown.used, shown.total);
  const load = use?.utilisation_percent;
  return h(
    "div",
    { key: "memory", class: "memory" },
    h(
      "div",
      { class: "row small" },
      h("span", { class: "grow" }, T.memoryOf(shown.label, bytes(shown.used), bytes(shown.total))),
      load != null && h("span", null, T.load(load, device === "cpu")),
    ),
    bar(part, shown.label, part > 92 ? "full" : ""),
  );
}

/**
 * @param {number} part percent
 * @param {string} label
 * @param {string} [kind]
 */
export function bar(part, label, kind = "") {
  return h(
    "div",
    { class: `bar ${kind}`, role: "progressbar", "aria-label": label, "aria-valuenow": part, "aria-valuemin": 0, "aria-valuemax": 100 },
    h("div", { style: `transform: scaleX(${part / 100})` }),
  );
}

/**
 * @param {CardParts} parts
 * @param {import("./api_types.js").RunningItem} item
 */
function itemRow({ jobs, now_ms, place }, item) {
  const job = jobs[item.job];
  const part = percent(item.value, item.maximum);
  const step = item.shipping ? T.shipping : item.maximum ? T.step(item.value, item.maximum) : "";
  return h(
    "div",
    { key: `${item.job}-${item.index}`, class: "item row" },
    item.preview > 0 && place.panel.pictures.picture(previewPath(item.job, item.index, item.preview), T.previewOf(item.index), "thumb"),
    h(
      "div",
      { class: "grow" },
      h(
        "p",
        { class: "row small" },
        h(
          "button",
          { type: "button", class: "link-button ellipsis grow", onclick: () => place.panel.jobs.open(item.job) },
          T.itemOf(item.index, job?.title || item.job.slice(0, 8)),
        ),
        h("span", { class: "muted" }, duration((now_ms - item.started_ms) / 1000)),
      ),
      h(
        "p",
        { class: "row small muted" },
        h("span", { class: "grow ellipsis" }, item.node_class || T.itemKinds[item.kind]),
        h("span", null, step),
      ),
      item.maximum > 0 && bar(part, T.progress),
    ),
  );
}

/**
 * @param {string} job
 * @param {number} index
 * @param {number} number
 * @param {number} [side]
 */
export function previewPath(job, index, number, side = 320) {
  return `jobs/${encodeURIComponent(job)}/items/${index}/preview?number=${number}&side=${side}`;
}

/** @param {CardParts} parts */
function facts({ worker, now_ms }) {
  const { last_error } = worker;
  const words = [
    worker.items_done > 0 && T.itemsDone(worker.items_done),
    worker.items_failed > 0 && T.itemsFailed(worker.items_failed),
    worker.restarts > 0 && T.restarts(worker.restarts),
    worker.guest && T.guest,
    worker.tags.length > 0 && worker.tags.join(", "),
  ].filter(Boolean);
  return [
    words.length > 0 && h("p", { key: "facts", class: "muted small" }, words.join(" · ")),
    last_error &&
      worker.colour !== "red" &&
      h(
        "details",
        { key: "error", class: "small" },
        h("summary", null, T.lastError(ago(last_error.at_ms, now_ms))),
        h("p", null, inPageWords(last_error.message, worker.editable)),
        remedyLine(last_error.remedy, worker.editable),
      ),
  ];
}

/**
 * Whether a worker can only fail again until its settings are others.
 * @param {Worker} worker
 */
export function needsSettings({ editable, repair, state }) {
  return editable && (repair !== "" || state === "failed");
}

/** @param {CardParts} parts */
function footer({ worker, isBusy, isAway, isOpen, place }) {
  const mends = needsSettings(worker);
  const again = worker.outdated && worker.orders.includes("restart");
  const first = FIRST_ORDERS.find((order) => worker.orders.includes(order) && !(order === "stop" && worker.keeper === "comfyui"));
  const settings = button(T.edit, () => place.edit(worker), {
    key: "edit",
    class: mends ? "first" : "",
    disabled: isBusy,
    "data-order": "edit",
    "aria-label": T.actionOf(T.edit, worker.name),
  });
  return h(
    "footer",
    { class: "row wrap" },
    mends && settings,
    first &&
      button(T.orders[first], () => place.order(worker, first), {
        key: first,
        class: !mends && (first === "start" || first === "resume" || first === "enable") ? "first" : "",
        disabled: isBusy,
        "data-order": first,
        "aria-label": T.actionOf(T.orders[first], worker.name),
      }),
    again &&
      button(T.orders.restart, () => place.order(worker, "restart"), {
        key: "restart",
        class: "first",
        disabled: isBusy,
        "data-order": "restart",
        "aria-label": T.actionOf(T.orders.restart, worker.name),
      }),
    button(T.log, () => place.openLog(worker), {
      key: "log",
      "data-order": "log",
      disabled: isAway,
      "aria-label": T.actionOf(T.log, worker.name),
    }),
    worker.editable && !mends && settings,
    h("span", { class: "grow" }),
    h(
      "div",
      { key: "more", class: "menu-place" },
      h(
        "button",
        {
          type: "button",
          class: "more",
          "aria-haspopup": "menu",
          "aria-expanded": String(isOpen),
          "aria-label": T.moreOf(worker.name),
          "data-order": "more",
          onclick: () => place.toggleMenu(worker.name),
        },
        "⋯",
      ),
      isOpen && menu(worker, again ? [first, "restart"] : [first], isAway, place),
    ),
  );
}

/**
 * @param {Worker} worker
 * @param {(Order | undefined)[]} shown orders that have a button of their own
 * @param {boolean} isAway
 * @param {import("./workers_view.js").WorkersPlace} place
 */
function menu(worker, shown, isAway, place) {
  const orders = MENU_ORDERS.filter((order) => !isAway && !shown.includes(order) && worker.orders.includes(order));
  const entry = (/** @type {string} */ key, /** @type {string} */ label, /** @type {() => unknown} */ press, danger = false) =>
    h(
      "button",
      {
        key,
        type: "button",
        role: "menuitem",
        tabindex: -1,
        class: danger ? "danger" : "",
        "data-order": key,
        onclick: (/** @type {MouseEvent} */ event) => choose(/** @type {HTMLElement} */ (event.currentTarget), place, press),
      },
      label,
    );
  return h(
    "div",
    {
      key: "menu",
      class: "menu",
      role: "menu",
      tabindex: -1,
      "aria-label": T.moreOf(worker.name),
      born: (/** @type {HTMLElement} */ box) => openMenu(box, place),
      onkeydown: (/** @type {KeyboardEvent} */ event) => moveInMenu(event, place),
    },
    orders.map((order) => entry(order, T.orders[order], () => place.order(worker, order))),
    !isAway && worker.orders.includes("stop") && worker.items.length > 0 && entry("stop-now", T.stopNow, () => place.stopNow(worker), true),
    entry("facts", T.facts, () => place.showFacts(worker)),
    !isAway && worker.editable && entry("remove", T.remove, () => place.remove(worker), true),
  );
}

/**
 * The menu closes, and the focus is again where it was opened.
 * @param {HTMLElement} entry
 * @param {import("./workers_view.js").WorkersPlace} place
 * @param {() => unknown} press
 */
function choose(entry, place, press) {
  /** @type {HTMLElement | null | undefined} */ (entry.closest(".menu-place")?.querySelector(".more"))?.focus();
  place.closeMenu();
  press();
}

/**
 * The focus goes into a menu that opens; when it leaves, the menu closes.
 * @param {HTMLElement} box
 * @param {import("./workers_view.js").WorkersPlace} place
 */
function openMenu(box, place) {
  if (box.getBoundingClientRect().top < 0) box.classList.add("below"); // there is no room above the button
  focusFirst(box);
  box.addEventListener("focusout", ({ target, relatedTarget }) => {
    setTimeout(() => {
      if (!box.isConnected) return;
      if (!(/** @type {Node} */ (target).isConnected))
        focusFirst(box); // what the worker can be told has changed meanwhile
      else if (!(relatedTarget instanceof Node && box.parentElement?.contains(relatedTarget))) place.closeMenu();
    });
  });
}

/** @param {HTMLElement} box */
function focusFirst(box) {
  /** @type {HTMLElement | null} */ (box.querySelector("[role=menuitem]"))?.focus();
}

/**
 * @param {KeyboardEvent} event
 * @param {import("./workers_view.js").WorkersPlace} place
 */
function moveInMenu(event, place) {
  if (event.key === "Escape" || event.key === "Tab") {
    const opener = /** @type {HTMLElement} */ (event.currentTarget).previousElementSibling;
    place.closeMenu();
    /** @type {HTMLElement | null} */ (opener)?.focus();
    if (event.key === "Escape") event.preventDefault();
    return;
  }
  const entries = /** @type {HTMLElement[]} */ ([.../** @type {HTMLElement} */ (event.currentTarget).querySelectorAll("[role=menuitem]")]);
  const from = entries.indexOf(/** @type {HTMLElement} */ (event.target));
  const steps = /** @type {Record<string, number>} */ ({ ArrowDown: 1, ArrowUp: -1, Home: -from, End: entries.length - 1 - from });
  if (!(event.key in steps)) return;
  event.preventDefault();
  const step = steps[event.key];
  entries[(from + step + entries.length) % entries.length]?.focus();
}
