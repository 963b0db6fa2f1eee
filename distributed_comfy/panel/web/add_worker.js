// The ways to one more worker: on this computer or one that has joined, another computer, a cloud machine, a ComfyUI that runs already.
import { commandBox } from "./copy.js";
import { button } from "./dialog.js";
import { h } from "./dom.js";
import { T } from "./texts.js";
import { tunnelView } from "./tunnel_view.js";
import { FormState, NAME, argumentsField, deviceField, devicesOf, failureOf, field } from "./worker_form.js";

const WAYS = /** @type {const} */ (["here", "network", "cloud", "existing"]);

/**
 * @typedef {typeof WAYS[number]} Way
 * @typedef {import("./panel.js").Panel} Panel
 */

/**
 * @param {Panel} panel
 * @param {Way} [way]
 */
export function openAdd(panel, way = "here") {
  const adding = new Adding(panel, way);
  panel.dialog.open({ title: T.addWorker, content: () => adding.view() });
}

/** What the dialog remembers. */
class Adding {
  /**
   * @param {Panel} panel
   * @param {Way} way
   */
  constructor(panel, way) {
    this.panel = panel;
    this.way = way;
    const draft = { name: "", device: "", args: "", enabled: true, tags: "", threads: "", url: "", tree: "", python: "" };
    this.form = new FormState(panel, draft);
    this.name = "";
    /** The computer that was chosen; empty: this one. */
    this.host = "";
    this.address = "127.0.0.1";
    this.port = "8188";
    this.hostName = "";
    /** Of this computer, in the network of the other one. */
    this.bind = "";
    /** @type {import("./api_types.js").NewInvite | null} */
    this.invite = null;
    this.form.draft.device = this.form.first.device = this.freeDevice();
  }

  get state() {
    return /** @type {import("./store.js").State} */ (this.panel.store.state);
  }

  /** Hosts whose workers can be added from here; this one first. */
  get hosts() {
    return Object.values(this.state.hosts)
      .filter((host) => host.configurable)
      .sort((one, other) => Number(other.here) - Number(one.here));
  }

  /** Where the worker is to be: this computer as long as no other one was chosen, and nowhere while that has no agent. */
  get chosenHost() {
    return this.hosts.find((host) => (this.host ? host.name === this.host : host.here));
  }

  freeDevice() {
    const devices = this.chosenHost?.devices ?? [];
    return (devices.find((device) => !device.used_by.length) ?? devices[0])?.name ?? "cpu";
  }

  view() {
    return [
      h(
        "div",
        { key: "ways", class: "ways", role: "radiogroup", "aria-label": T.addWhere },
        WAYS.map((way) =>
          h(
            "label",
            { key: way, class: "way" },
            h("input", {
              type: "radio",
              name: "way",
              value: way,
              checked: this.way === way,
              disabled: this.panel.busy.has("add"),
              onchange: () => this.choose(way),
            }),
            h("span", null, h("strong", null, T.ways[way].label), h("span", { class: "small muted" }, T.ways[way].words)),
          ),
        ),
      ),
      h("div", { key: this.way, class: "form" }, this.content()),
    ];
  }

  /** @param {Way} way */
  choose(way) {
    this.way = way;
    this.invite = null;
    this.form.wrong = {};
    this.form.failure = null;
    this.panel.update();
  }

  content() {
    if (this.way === "network" || this.way === "cloud") return this.inviting();
    if (!this.chosenHost) return [this.noAgent(), this.hostField()];
    return this.way === "here" ? this.here() : this.existing();
  }

  /** What lets workers be added on this computer. */
  noAgent() {
    const words = this.hosts.length ? T.notHere : Object.keys(this.state.hosts).length ? T.notConfigurable : T.startAgent;
    return h("div", { key: "no-agent" }, h("p", null, words), commandBox("distributed-comfy up"));
  }

  here() {
    const devices = this.chosenHost?.devices ?? [];
    return [
      this.hostField(),
      deviceField(this.form, devices, ""),
      this.nameField(),
      argumentsField(this.form),
      failureOf(this.form),
      this.addButton(() => ({
        device: devicesOf(this.form.draft.device),
        ...(this.form.draft.args.trim() ? { comfyui_args: this.form.draft.args.trim() } : {}),
      })),
    ];
  }

  existing() {
    return [
      this.hostField(),
      this.input("address", T.fields.address, this.address, (value) => (this.address = value)),
      this.input("port", T.fields.port, this.port, (value) => (this.port = value), { inputmode: "numeric" }),
      this.nameField(),
      failureOf(this.form),
      this.addButton(() => ({ device: "cpu", engine: "attach", comfyui_url: `http://${this.address.trim()}:${this.port.trim()}` })),
    ];
  }

  hostField() {
    const here = this.hosts.find((host) => host.here);
    if (this.hosts.length < (here ? 2 : 1)) return null;
    return field(this.form, "host", here || this.host ? T.fields.host : T.otherHost, (props) =>
      h(
        "select",
        {
          ...props,
          value: this.chosenHost?.name ?? "",
          onchange: (/** @type {Event} */ event) => {
            this.host = /** @type {HTMLSelectElement} */ (event.target).value;
            this.form.set("device", this.freeDevice());
          },
        },
        !here && h("option", { key: "", value: "" }, T.chooseHost(this.state.host)),
        this.hosts.map((host) => h("option", { key: host.name, value: host.name }, host.here ? T.hereOption(host.name) : host.name)),
      ),
    );
  }

  nameField() {
    return this.input("name", T.fields.name, this.name, (value) => (this.name = value), { placeholder: T.nameByItself });
  }

  /**
   * @param {string} name
   * @param {{label: string, words: string}} texts
   * @param {string} value
   * @param {(value: string) => void} set
   * @param {import("./dom.js").Props} [more]
   */
  input(name, texts, value, set, more = {}) {
    return field(this.form, name, texts, (props) =>
      h("input", {
        ...props,
        type: "text",
        spellcheck: "false",
        autocomplete: "off",
        value,
        oninput: (/** @type {Event} */ event) => {
          set(/** @type {HTMLInputElement} */ (event.target).value);
          this.check();
        },
        ...more,
      }),
    );
  }

  /** What this page can tell by itself; whether all is right. */
  check() {
    const wrong = this.way === "here" ? this.form.check() : {};
    if (this.way !== "network" && this.way !== "cloud") {
      if (!NAME.test(this.name.trim())) wrong.name = T.nameWrong;
      else if (this.state.workers[this.name.trim()]) wrong.name = T.nameTaken(this.name.trim());
    }
    if (this.way === "existing") {
      if (!/^[\w.-]+$|^\[[0-9a-f:]+\]$/i.test(this.address.trim())) wrong.address = T.addressWrong;
      if (!(/^\d+$/.test(this.port.trim()) && Number(this.port) >= 1 && Number(this.port) <= 65_535)) wrong.port = T.portWrong;
    }
    this.form.wrong = wrong;
    this.form.failure = null;
    this.panel.update();
    return !Object.keys(wrong).length;
  }

  /** @param {() => import("./api_types.js").WorkerFields} fields */
  addButton(fields) {
    return h(
      "div",
      { key: "send", class: "row end" },
      button(T.add, () => this.add(fields()), { class: "first", disabled: this.panel.busy.has("add"), "data-action": "send" }),
    );
  }

  /** @param {import("./api_types.js").WorkerFields} fields */
  add(fields) {
    const host = this.chosenHost;
    if (!host || !this.check()) return undefined;
    const body = { name: this.name.trim(), host: host.name, fields };
    return this.panel.act("add", async () => {
      try {
        const answer = await this.panel.server.change("POST", "workers", body);
        this.panel.dialog.close();
        return answer.text || T.added(answer.worker);
      } catch (error) {
        this.form.refuse(error);
        return undefined;
      }
    });
  }

  // -- another computer ---------------------------------------------------------------------------------------------
  inviting() {
    const isCloud = this.way === "cloud";
    if (this.invite) return this.invited(this.invite);
    const canInvite = !isCloud || this.state.tunnel.state === "open";
    return [
      isCloud && tunnelView(this.panel, this.state.tunnel),
      this.input("hostName", T.fields.hostName, this.hostName, (value) => (this.hostName = value), { placeholder: T.nameByItself }),
      !isCloud &&
        h(
          "details",
          { key: "more" },
          h("summary", null, T.moreOptions),
          this.input("bind", T.fields.bind, this.bind, (value) => (this.bind = value), { placeholder: T.nameByItself }),
        ),
      failureOf(this.form),
      h(
        "div",
        { key: "send", class: "row end" },
        button(T.invite, () => this.makeInvite(isCloud), {
          class: "first",
          disabled: !canInvite || this.panel.busy.has("add"),
          "data-action": "invite",
          "aria-describedby": canInvite ? undefined : "needs-tunnel",
        }),
      ),
      !canInvite && h("p", { key: "needs-tunnel", id: "needs-tunnel", class: "small muted" }, T.needsTunnel),
    ];
  }

  /** @param {boolean} tunnel */
  makeInvite(tunnel) {
    return this.panel.act("add", async () => {
      try {
        this.form.failure = null;
        this.invite = await this.panel.server.change("POST", "invites", {
          name: this.hostName.trim(),
          ...(tunnel ? { tunnel } : { bind: this.bind.trim() }),
        });
      } catch (error) {
        this.form.refuse(error);
      }
    });
  }

  /** @param {import("./api_types.js").NewInvite} invite */
  invited(invite) {
    const host = this.state.hosts[invite.host];
    const hasCome = host && !host.gone_ms;
    return [
      h("p", { key: "say" }, T.runThere(invite.host)),
      h("ol", { key: "steps" }, h("li", null, T.installThere), h("li", null, T.joinThere, commandBox(invite.command, T.joinThere))),
      h("p", { key: "secret", class: "small muted" }, T.inviteSecret(new Date(invite.expires_ms).toLocaleString())),
      h(
        "p",
        { key: "waits", class: hasCome ? "good" : "muted", role: "status" },
        hasCome ? T.hasJoined(invite.host) : T.waitsForHost(invite.host),
      ),
    ];
  }
}
