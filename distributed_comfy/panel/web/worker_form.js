// The fields of a worker, explained and checked: for one that is there, and for a new one.
import { button } from "./dialog.js";
import { h } from "./dom.js";
import { inPageWords } from "./page_words.js";
import { T } from "./texts.js";

/**
 * @typedef {import("./api_types.js").Worker} Worker
 * @typedef {import("./api_types.js").WorkerFields} WorkerFields
 * @typedef {import("./api_types.js").ExtraArgument} ExtraArgument
 * @typedef {import("./api_types.js").Device} Device
 *
 * @typedef {{name: string, device: string, args: string, enabled: boolean, tags: string, threads: string, url: string, tree: string,
 *   python: string}} Draft
 */

/** Names of the server that differ from those of the form. @type {Record<string, keyof Draft>} */
const PLACES = { comfyui_args: "args", comfyui_url: "url", comfyui_path: "tree", comfyui_python: "python" };
export const NAME = /^[a-z0-9_-]*$/;
const DEVICE = /^(cpu|mps|(cuda|xpu):\d{1,3}(\s*,\s*(cuda|xpu):\d{1,3})*)$/;

/** What is typed into a form, and what is wrong with it. */
export class FormState {
  /**
   * @param {import("./panel.js").Panel} panel
   * @param {Draft} draft
   */
  constructor(panel, draft) {
    this.panel = panel;
    this.draft = draft;
    this.first = { ...draft };
    /** Field -> what it must be. @type {Record<string, string>} */
    this.wrong = {};
    /** What is wrong with all of it. @type {{message: string, remedy?: string} | null} */
    this.failure = null;
    /** The field that the form is opened for, if it is for one. */
    this.wanted = "";
    /** @type {ExtraArgument[]} */
    this.known = [];
    this.askArguments();
  }

  async askArguments() {
    try {
      this.known = (await this.panel.server.read("extra-arguments")).arguments;
      this.panel.update();
    } catch (error) {
      this.panel.notices.error(error);
    }
  }

  /**
   * @param {keyof Draft} name
   * @param {string | boolean} value
   */
  set(name, value) {
    this.draft = { ...this.draft, [name]: value };
    this.wrong = this.check();
    this.failure = null;
    this.panel.update();
  }

  /** What this page can tell by itself. */
  check() {
    const { name, device, threads, args } = this.draft;
    /** @type {Record<string, string>} */
    const wrong = {};
    if (name.trim() !== this.first.name) {
      if (!name.trim() || !NAME.test(name.trim())) wrong.name = T.nameWrong;
      else if (this.panel.store.state?.workers[name.trim()]) wrong.name = T.nameTaken(name.trim());
    }
    if (!DEVICE.test(device.trim())) wrong.device = T.deviceWrong;
    if (threads.trim() && !(/^\d+$/.test(threads.trim()) && Number(threads) <= 1024)) wrong.threads = T.threadsWrong;
    const stray = args.trim() && !args.trim().startsWith("-") ? args.trim().split(/\s+/)[0] : "";
    if (stray) wrong.args = T.argsWrong(stray);
    return wrong;
  }

  /** Whether it may be sent; shows what is wrong otherwise. */
  isRight() {
    this.wrong = this.check();
    this.panel.update();
    return !Object.keys(this.wrong).length;
  }

  /**
   * Show why the server has not taken it, beside the field where that is known.
   * @param {any} error
   */
  refuse(error) {
    const places = Object.entries(/** @type {Record<string, string>} */ (error.fields ?? {}));
    this.wrong = Object.fromEntries(places.map(([place, words]) => [fieldOf(place), words]));
    this.failure = places.some(([place]) => !(fieldOf(place) in this.draft)) || !places.length ? error : null;
    this.panel.update();
  }

  /** The fields that differ from before, as the server takes them. */
  changes() {
    const { draft, first } = this;
    /** @type {WorkerFields} */
    const fields = {};
    if (draft.device !== first.device) fields.device = devicesOf(draft.device);
    if (draft.args !== first.args) fields.comfyui_args = draft.args.trim() || null;
    if (draft.enabled !== first.enabled) fields.enabled = draft.enabled;
    if (draft.tags !== first.tags) fields.tags = tagsOf(draft.tags);
    if (draft.threads !== first.threads) fields.threads = Number(draft.threads) || null;
    if (draft.url !== first.url) fields.comfyui_url = draft.url.trim() || null;
    if (draft.tree !== first.tree) fields.comfyui_path = draft.tree.trim() || null;
    if (draft.python !== first.python) fields.comfyui_python = draft.python.trim() || null;
    return fields;
  }
}

/** @param {string} place as the server names it: `fields.comfyui_args` */
function fieldOf(place) {
  const parts = place.split(".").filter((part) => !/^\d+$/.test(part));
  const name = parts[parts.length - 1] ?? "";
  return PLACES[name] ?? name;
}

/** @param {string} text */
export function devicesOf(text) {
  const devices = text.split(",").map((each) => each.trim());
  return devices.length > 1 ? devices : devices[0];
}

/** @param {string} text */
export function tagsOf(text) {
  return text.split(/[\s,]+/).filter(Boolean);
}

/**
 * A labelled field with its explanation, and what is wrong with it.
 * @param {{wrong: Record<string, string>}} form
 * @param {string} name
 * @param {{label: string, words: string}} texts
 * @param {(props: import("./dom.js").Props) => import("./dom.js").Child} control given what ties it to the label
 */
export function field(form, name, { label, words }, control) {
  const wrong = form.wrong[name];
  const id = `field-${name}`;
  return h(
    "div",
    { key: name, class: wrong ? "field wrong" : "field" },
    h("label", { for: id }, label),
    control({ id, name, "aria-describedby": `${id}-words`, "aria-invalid": wrong ? "true" : undefined }),
    h("p", { id: `${id}-words`, class: wrong ? "small bad" : "small muted", role: wrong ? "alert" : undefined }, wrong || words),
  );
}

/**
 * @param {FormState} form
 * @param {keyof Draft} name
 * @param {import("./dom.js").Props} [more]
 */
export function textField(form, name, more = {}) {
  return field(form, name, T.fields[name], (props) =>
    h("input", {
      ...props,
      type: "text",
      spellcheck: "false",
      autocomplete: "off",
      value: String(form.draft[name]),
      oninput: (/** @type {Event} */ event) => form.set(name, /** @type {HTMLInputElement} */ (event.target).value),
      autofocus: form.wanted === name ? "" : undefined,
      ...more,
    }),
  );
}

/**
 * The device: one of those that the host has, or another that is typed.
 * @param {FormState} form
 * @param {Device[]} devices
 * @param {string} own name of the worker, which does not count as another user of its device
 */
export function deviceField(form, devices, own) {
  const users = devices.find((device) => device.name === form.draft.device.trim())?.used_by.filter((name) => name !== own) ?? [];
  return [
    textField(form, "device", { list: "devices" }),
    h(
      "datalist",
      { key: "devices", id: "devices" },
      devices.map((device) => h("option", { key: device.name, value: device.name }, T.deviceChoice(device))),
    ),
    devices.length > 0 &&
      h(
        "div",
        { key: "device-chips", class: "row wrap chips", role: "group", "aria-label": T.devicesThere },
        devices.map((device) =>
          h(
            "button",
            {
              key: device.name,
              type: "button",
              class: "chip",
              "aria-pressed": String(form.draft.device.trim() === device.name),
              onclick: () => form.set("device", device.name),
            },
            T.deviceChoice(device),
          ),
        ),
      ),
    users.length > 0 && h("p", { key: "device-used", class: "small warn" }, T.deviceUsed(users.join(", "))),
  ];
}

/**
 * Extra arguments of ComfyUI as text, and the common ones to be chosen.
 * @param {FormState} form
 */
export function argumentsField(form) {
  const words = () => form.draft.args.trim().split(/\s+/).filter(Boolean); // of now: two may be chosen before the next frame
  const isOnCpu = form.draft.device.trim() === "cpu";
  return [
    textField(form, "args", { placeholder: T.argumentsExample }),
    h(
      "ul",
      { key: "args-known", class: "arguments", "aria-label": T.commonArguments },
      form.known.filter((known) => !(isOnCpu && known.gpu) || words().includes(known.argument)).map((known) =>
        h(
          "li",
          { key: known.argument },
          h(
            "label",
            { class: "choice" },
            h("input", {
              type: "checkbox",
              checked: words().includes(known.argument),
              "data-argument": known.argument,
              onchange: () => form.set("args", toggled(words(), known).join(" ")),
            }),
            h(
              "span",
              null,
              h("code", null, [known.argument, known.value].filter(Boolean).join(" ")),
              " ",
              h("span", { class: "muted" }, known.words),
            ),
          ),
        ),
      ),
    ),
  ];
}

/**
 * The words with an argument that was not there, and without those it excludes; or without it and its value.
 * @param {string[]} words
 * @param {ExtraArgument} known
 */
export function toggled(words, known) {
  const without = (/** @type {string[]} */ all, /** @type {string} */ name) => {
    const at = all.indexOf(name);
    if (at < 0) return all;
    const hasValue = at + 1 < all.length && !all[at + 1].startsWith("-");
    return [...all.slice(0, at), ...all.slice(at + (hasValue ? 2 : 1))];
  };
  if (words.includes(known.argument)) return without(words, known.argument);
  return [...known.excludes.reduce(without, words), known.argument, ...(known.value ? [known.value] : [])];
}

/** @param {{failure: {message: string, remedy?: string} | null}} form */
export function failureOf(form) {
  return (
    form.failure &&
    h(
      "div",
      { key: "failure", class: "banner bad", role: "alert" },
      h("p", null, inPageWords(form.failure.message)),
      form.failure.remedy && h("p", null, inPageWords(form.failure.remedy)),
    )
  );
}

/**
 * Change what is written down about a worker.
 * @param {import("./panel.js").Panel} panel
 * @param {Worker} worker
 */
export function openEdit(panel, worker) {
  const form = new FormState(panel, draftOf(worker));
  form.wanted = fieldOf(worker.repair);
  const { name } = worker;
  const send = (/** @type {boolean} */ restart) => save(panel, form, name, restart);
  panel.dialog.open({
    title: T.editTitle(name),
    content: () => {
      const isBusy = panel.busy.has(name);
      const devices = panel.store.state?.hosts[worker.host]?.devices ?? [];
      const isAttached = worker.configuration?.engine === "attach";
      const now = panel.store.state?.workers[name];
      return [
        h(
          "form",
          { class: "form", onsubmit: (/** @type {Event} */ event) => (event.preventDefault(), void send(true)) },
          nameField(form, !!now?.pid),
          isAttached ? textField(form, "url") : deviceField(form, devices, name),
          !isAttached && worker.configuration?.engine !== "builtin" && [textField(form, "tree"), textField(form, "python")],
          !isAttached && argumentsField(form),
          textField(form, "tags"),
          !isAttached && textField(form, "threads", { inputmode: "numeric" }),
          enabledField(form),
          failureOf(form),
          h(
            "div",
            { class: "row end wrap" },
            button(T.saveLater, () => send(false), { disabled: isBusy, "data-action": "save" }),
            h("button", { type: "submit", class: "first", disabled: isBusy, "data-action": "save-restart" }, T.saveAndRestart),
          ),
        ),
      ];
    },
  });
}

/**
 * The name, which a worker that runs keeps.
 * @param {FormState} form
 * @param {boolean} runs
 */
function nameField(form, runs) {
  const words = runs ? T.fields.newName.whileRunning : T.fields.newName.words;
  return field(form, "name", { label: T.fields.newName.label, words }, (props) =>
    h("input", {
      ...props,
      type: "text",
      spellcheck: "false",
      autocomplete: "off",
      value: form.draft.name,
      readonly: runs && form.draft.name === form.first.name,
      oninput: (/** @type {Event} */ event) => form.set("name", /** @type {HTMLInputElement} */ (event.target).value),
    }),
  );
}

/** @param {FormState} form */
function enabledField(form) {
  return h(
    "div",
    { key: "enabled", class: "field" },
    h(
      "label",
      { class: "choice" },
      h("input", {
        type: "checkbox",
        checked: form.draft.enabled,
        onchange: (/** @type {Event} */ event) => form.set("enabled", /** @type {HTMLInputElement} */ (event.target).checked),
      }),
      T.fields.enabled.label,
    ),
    h("p", { class: "small muted" }, T.fields.enabled.words),
  );
}

/**
 * @param {import("./panel.js").Panel} panel
 * @param {FormState} form
 * @param {string} name
 * @param {boolean} restart
 */
async function save(panel, form, name, restart) {
  if (!form.isRight()) return;
  const fields = form.changes();
  const renamed = form.draft.name.trim() === name ? {} : { name: form.draft.name.trim() };
  if (!Object.keys({ ...fields, ...renamed }).length && !restart) {
    panel.dialog.close();
    return;
  }
  await panel.act(name, async () => {
    try {
      const answer = await panel.server.change("PATCH", `workers/${encodeURIComponent(name)}`, { fields, restart, ...renamed });
      panel.dialog.close();
      return answer.text;
    } catch (error) {
      form.refuse(error);
      return undefined;
    }
  });
}

/**
 * @param {Worker} worker
 * @returns {Draft}
 */
function draftOf({ name, configuration, device, enabled }) {
  const { device: devices = device, comfyui_args: args, tags, threads, comfyui_url, comfyui_path, comfyui_python } = configuration ?? {};
  return {
    name,
    device: Array.isArray(devices) ? devices.join(", ") : (devices ?? ""),
    args: Array.isArray(args) ? args.map(quoted).join(" ") : (args ?? ""),
    enabled: configuration?.enabled ?? enabled,
    tags: (tags ?? []).join(", "),
    threads: threads ? String(threads) : "",
    url: comfyui_url ?? "",
    tree: comfyui_path ?? "",
    python: comfyui_python ?? "",
  };
}

/** @param {string} word as a shell takes it */
function quoted(word) {
  return /^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", `'\\''`)}'`;
}
