// Timeouts and limits: those that a person may want to change as a form, and all of them to look at.
import { h } from "./dom.js";
import { T } from "./texts.js";
import { failureOf, field } from "./worker_form.js";

/**
 * @typedef {import("./panel.js").Panel} Panel
 * @typedef {import("./api_types.js").Setting} Setting
 * @typedef {import("./api_types.js").Settings} Settings
 */

/** @param {Panel} panel */
export function changeSettings(panel) {
  const form = new SettingsForm(panel);
  panel.dialog.open({ title: T.settings, content: () => form.view() });
}

/** What is typed into the form, and what is wrong with it. */
class SettingsForm {
  /** @param {Panel} panel */
  constructor(panel) {
    this.panel = panel;
    /** @type {Settings | null} */
    this.found = null;
    /** Name -> what is typed. @type {Record<string, string>} */
    this.typed = {};
    /** Name -> what it must be. @type {Record<string, string>} */
    this.wrong = {};
    /** @type {{message: string, remedy?: string} | null} */
    this.failure = null;
    void panel.act("settings", async () => this.take(await panel.server.read("settings")));
  }

  /** @param {Settings} found */
  take(found) {
    this.found = found;
    this.typed = Object.fromEntries(this.fields.map((setting) => [setting.name, written(setting)]));
  }

  /** In the order in which they are explained. */
  get fields() {
    const names = Object.keys(T.settingFields);
    return (this.found?.settings ?? [])
      .filter((setting) => setting.changeable && names.includes(setting.name))
      .sort((one, other) => names.indexOf(one.name) - names.indexOf(other.name));
  }

  view() {
    if (!this.found) return [h("p", { class: "muted" }, T.loading)];
    const { trouble } = this.found;
    return [
      h("p", { key: "when", class: "small muted" }, T.settingsWhen[this.panel.kind]),
      trouble && h("p", { key: "trouble", class: "reason red" }, trouble),
      h(
        "form",
        { class: "form", onsubmit: (/** @type {Event} */ event) => (event.preventDefault(), void this.save()) },
        this.fields.map((setting) => this.field(setting)),
        failureOf(this),
        h(
          "div",
          { class: "row end" },
          h("button", { type: "submit", class: "first", disabled: this.panel.busy.has("settings"), "data-action": "save" }, T.saveSettings),
        ),
      ),
    ];
  }

  /** @param {Setting} setting */
  field(setting) {
    const { name, fixed } = setting;
    const { label, words } = T.settingFields[name];
    const more = [
      fixed ? T.settingFixed : T.byDefault(shown(setting.default)),
      setting.value !== setting.next && T.settingNow(shown(setting.value)),
    ];
    return field(this, name, { label, words: [words, ...more].filter(Boolean).join(" ") }, (props) =>
      h("input", {
        ...props,
        type: "text",
        inputmode: "decimal",
        autocomplete: "off",
        placeholder: shown(setting.default),
        value: this.typed[name],
        disabled: fixed,
        oninput: (/** @type {Event} */ event) => this.type(name, /** @type {HTMLInputElement} */ (event.target).value),
      }),
    );
  }

  /**
   * @param {string} name
   * @param {string} text
   */
  type(name, text) {
    this.typed = { ...this.typed, [name]: text };
    this.failure = null;
    this.check();
  }

  /** What this page can tell by itself; whether all is right. */
  check() {
    /** @type {[string, string][]} */
    const wrong = this.fields
      .filter((setting) => !isRight(setting, this.typed[setting.name]))
      .map(({ name, minimum, maximum }) => [name, T.settingWrong(minimum ?? 0, maximum ?? 0)]);
    this.wrong = Object.fromEntries(wrong);
    this.panel.update();
    return !wrong.length;
  }

  async save() {
    if (!this.check()) return;
    const changed = this.fields.filter((setting) => !setting.fixed && this.typed[setting.name].trim() !== written(setting));
    if (!changed.length) {
      this.panel.dialog.close();
      return;
    }
    const changes = Object.fromEntries(changed.map(({ name }) => [name, numberOf(this.typed[name])]));
    await this.panel.act("settings", async () => {
      try {
        await this.panel.server.change("PATCH", "settings", { changes });
        this.panel.dialog.close();
        return T.settingsKept;
      } catch (error) {
        this.refuse(error);
        return undefined;
      }
    });
  }

  /**
   * Show why the server has not taken it, beside the field where that is known.
   * @param {any} error
   */
  refuse(error) {
    this.wrong = error.fields ?? {};
    this.failure = Object.keys(this.wrong).length ? null : error;
    this.panel.update();
  }
}

/**
 * What stands in the field of a setting; nothing where it is as it usually is.
 * @param {Setting} setting
 */
function written({ next, default: usual }) {
  return next === usual ? "" : String(next);
}

/**
 * @param {Setting} setting
 * @param {string} text
 */
function isRight({ minimum, maximum }, text) {
  const number = numberOf(text);
  return number === null || (number >= (minimum ?? number) && number <= (maximum ?? number));
}

/**
 * The number that a text is; null where it is empty, not a number (NaN) where it is none.
 * @param {string} text
 */
function numberOf(text) {
  const plain = text.trim().replace(",", ".");
  if (!plain) return null;
  return /^\d+(\.\d+)?$/.test(plain) ? Number(plain) : NaN;
}

/** @param {Panel} panel */
export function showSettings(panel) {
  /** @type {Settings | null} */
  let found = null;
  let words = "";
  void panel.act("settings", async () => {
    found = await panel.server.read("settings");
  });
  panel.dialog.open({
    title: T.settings,
    wide: true,
    content: () => [
      found && h("p", { class: "small" }, T.settingsFile, h("code", null, found.file)),
      h("input", {
        type: "search",
        placeholder: T.findSetting,
        "aria-label": T.findSetting,
        oninput: (/** @type {Event} */ event) => {
          words = /** @type {HTMLInputElement} */ (event.target).value.trim().toLowerCase();
          panel.update();
        },
      }),
      h(
        "dl",
        { class: "settings" },
        (found?.settings ?? [])
          .filter((setting) => `${setting.name} ${setting.words}`.toLowerCase().includes(words))
          .map((setting) => [
            h(
              "dt",
              { key: setting.name },
              h("code", null, setting.name),
              " ",
              h("span", { class: setting.value === setting.default ? "muted" : "changed" }, shown(setting.value)),
            ),
            h(
              "dd",
              { key: `${setting.name} words`, class: "small muted" },
              setting.words,
              setting.value !== setting.default && ` ${T.byDefault(shown(setting.default))}`,
            ),
          ]),
      ),
    ],
  });
}

/** @param {string | number | boolean | null} value */
function shown(value) {
  return value === null || value === "" ? T.notSet : String(value);
}
