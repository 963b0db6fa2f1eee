// Asks the user once whether ordinary prompts may run on any GPU: when there is a worker that could run them, and nobody has answered yet.
//
// It comes when no other dialog is open: ComfyUI opens one of its own at its first start, which would lie in front of it.
//
// "Yes" and "Never" are kept by the pack, for all its pages.  "Not now" is kept by this browser, until ComfyUI starts the next time.
import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { setOption } from "./options.js";
import { read } from "./requests.js";
import { T } from "./texts.js";
import { tell } from "./toasts.js";

const EVENT = "distributed-comfy.ordinary";
const DIALOG = "extension-distributed-comfy-offer"; // older frontends close only what is called by this whole name
const PUT_OFF = "distributed-comfy.offer-put-off";
const CALM_MS = 2000; // no dialog has been open for so long; a page that has just been loaded may still open one
const LOOK_MS = 250;

/**
 * What the pack says about ordinary prompts.
 * @typedef {{state: string, workers: number, since_ms: number}} Ordinary
 */

/**
 * Takes back what is offered now, or is about to be; null where nothing is.
 * @type {?() => void}
 */
let withdraw = null;

/** Offer it as soon as there is something to offer. */
export async function watchOffer() {
  api.addEventListener(EVENT, ({ detail }) => look(detail));
  try {
    const { ordinary } = await read("/distributed_comfy/status");
    if (ordinary) look(ordinary);
  } catch (error) {
    console.warn("[distributed-comfy] the status cannot be read:", error.message);
  }
}

/** @param {Ordinary} ordinary */
function look(ordinary) {
  if (ordinary.state !== "offered") withdraw?.();
  else if (withdraw === null && localStorage.getItem(PUT_OFF) !== String(ordinary.since_ms)) showWhenCalm(ordinary);
}

/** @param {Ordinary} ordinary */
function showWhenCalm(ordinary) {
  let calm = 0;
  const timer = setInterval(() => {
    calm = dialogIsOpen() ? 0 : calm + LOOK_MS;
    if (calm < CALM_MS) return;
    clearInterval(timer);
    show(ordinary);
  }, LOOK_MS);
  withdraw = () => {
    clearInterval(timer);
    withdraw = null;
  };
}

/** Whether ComfyUI, or a node pack, shows a dialog. */
function dialogIsOpen() {
  return [...document.querySelectorAll("[role=dialog], .p-dialog, dialog[open], .comfy-modal")].some((each) => each.getClientRects().length);
}

/** @param {Ordinary} ordinary */
function show({ workers, since_ms }) {
  let putOff = true; // closed in any other way than by a button counts as "Not now"
  const close = () => {
    putOff = false;
    opened.closeDialog();
  };
  const answer = (given) => () => {
    close();
    keep(given);
  };
  const opened = app.extensionManager.dialog.showExtensionDialog({
    key: DIALOG,
    title: T.offerTitle,
    component: panel(T.offerWords(workers), [
      [T.offerAnswers.yes, answer(true)],
      [T.offerAnswers.later, () => opened.closeDialog()],
      [T.offerAnswers.never, answer(false)],
    ]),
    dialogComponentProps: {
      modal: false,
      position: "bottom",
      onClose: () => {
        withdraw = null;
        if (putOff) localStorage.setItem(PUT_OFF, String(since_ms));
      },
    },
  });
  withdraw = close;
}

/**
 * Tell the pack.
 * @param {boolean} given
 */
async function keep(given) {
  if (!(await setOption("ordinary", given)) || !given) return;
  tell("success", T.offerTaken);
}

/**
 * A component of ComfyUI's dialogs that needs nothing of ComfyUI's own modules: it renders nothing and brings its elements along.
 * @param {string[]} paragraphs
 * @param {[string, () => void][]} buttons the first one is the one to notice
 */
function panel(paragraphs, buttons) {
  const box = document.createElement("div");
  box.className = "distributed-comfy-offer";
  box.style.cssText = "max-width: 26rem; display: flex; flex-direction: column; gap: 0.75rem";
  for (const paragraph of paragraphs) box.append(element("p", "", paragraph));
  const row = element("div");
  row.style.cssText = "display: flex; gap: 0.5rem; justify-content: flex-end";
  buttons.forEach(([label, act], place) => {
    const button = element("button", `p-button p-component p-button-sm ${place ? "p-button-secondary" : ""}`);
    button.type = "button";
    button.append(element("span", "p-button-label", label));
    button.addEventListener("click", act);
    row.append(button);
  });
  box.append(row);
  return {
    render: () => "",
    mounted() {
      this.$el.after(box);
    },
    beforeUnmount() {
      box.remove();
    },
  };
}

function element(kind, classes = "", words = "") {
  const made = document.createElement(kind);
  made.className = classes;
  made.textContent = words;
  made.style.margin = "0";
  return made;
}
