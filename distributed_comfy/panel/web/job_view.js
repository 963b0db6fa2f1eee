// One job: how far it is, what it can be told, its items as they come, errors with node and traceback, and its results.
import { button } from "./dialog.js";
import { h, memo } from "./dom.js";
import { ago, bytes, duration, percent } from "./format.js";
import { colourOf, itemsOf, whenOf, wordsOf } from "./job_words.js";
import { inPageWords, remedyLine } from "./page_words.js";
import { keepFile } from "./pictures.js";
import { T } from "./texts.js";
import { ListWindow, windowedList } from "./window_list.js";
import { bar, previewPath } from "./worker_card.js";

const CELL_PX = 92;
const SETTLE_MS = 400;
/** Between looks for files, which come after the items: at `serve` as they are saved, at ComfyUI when the whole workflow has ended. */
const PAUSES_MS = [1000, 2000, 4000, 8000, 15_000, 30_000];

/**
 * @typedef {import("./api_types.js").Job} Job
 * @typedef {import("./api_types.js").Item} Item
 * @typedef {import("./api_types.js").JobDetail} Detail
 * @typedef {import("./api_types.js").ResultFile} ResultFile
 */

/** What is remembered of the job that is shown. */
export class JobPlace {
  /** @param {import("./panel.js").Panel} panel */
  constructor(panel) {
    this.panel = panel;
    this.id = "";
    /** @type {Detail | null} */
    this.detail = null;
    /** @type {any} */
    this.failure = null;
    /** The first picture among the files of an item. @type {Map<number, ResultFile>} */
    this.pictures = new Map();
    /** Of a job that has left a single picture. @type {ResultFile | null} */
    this.only = null;
    this.chosen = -1;
    this.window = new ListWindow(() => panel.update());
    this.readFor = "";
    this.timer = 0;
    /** Reads so far, and which of them the detail comes from: an answer to an older one is not used. */
    this.turn = this.usedTurn = 0;
    /** To read once more: after a read that failed, and while files may still come. */
    this.later = 0;
    this.looks = 0;
  }

  /** @param {string} id */
  open(id) {
    if (id === this.id) return;
    this.id = id;
    this.detail = null;
    this.pictures.clear();
    this.only = null;
    this.failure = null;
    this.chosen = -1;
    this.readFor = "";
    this.window.top = 0;
    this.end();
    this.panel.pictures.forgetLost();
    this.panel.store.watch(id);
  }

  /** Read nothing more. */
  end() {
    clearTimeout(this.timer);
    clearTimeout(this.later);
    this.timer = this.later = 0;
    this.usedTurn = this.turn;
  }

  /**
   * Read what the stream of events does not bring, whenever the job has moved on.
   * @param {Job | undefined} job
   */
  refresh(job) {
    const now = `${this.id} ${job?.state} ${job?.counts.done} ${job?.counts.failed}`;
    if (this.readFor === now || this.timer) return;
    this.readFor = now;
    this.looks = 0;
    this.timer = setTimeout(() => void this.read(), this.detail ? SETTLE_MS : 0);
  }

  async read() {
    clearTimeout(this.later);
    this.timer = this.later = 0;
    const turn = ++this.turn;
    const id = this.id;
    if (!id) return;
    try {
      const detail = /** @type {Detail} */ (await this.panel.server.read(`jobs/${encodeURIComponent(id)}`));
      if (turn <= this.usedTurn) return;
      this.usedTurn = turn;
      if (this.failure) this.looks = 0;
      this.take(detail);
      if (this.mayBring(detail)) this.readLater();
    } catch (error) {
      if (turn <= this.usedTurn) return;
      this.failure = error;
      if (this.failure.status !== 404) this.readLater();
    }
    this.panel.update();
  }

  /** @param {Detail} detail */
  take(detail) {
    [this.detail, this.failure] = [detail, null];
    const found = detail.results.filter(isPicture);
    this.only = found.length === 1 ? found[0] : null;
    this.pictures.clear();
    for (const file of found) if (file.item !== null && !this.pictures.has(file.item)) this.pictures.set(file.item, file);
  }

  /** After the next pause; the last of them again and again. */
  readLater() {
    clearTimeout(this.later);
    this.later = setTimeout(() => this.readIfSeen(), PAUSES_MS[Math.min(this.looks, PAUSES_MS.length - 1)]);
    this.looks += 1;
  }

  /** A job that nobody looks at now is read when it is shown again. */
  readIfSeen() {
    this.later = 0;
    if (this.panel.section === "jobs" && document.visibilityState === "visible") void this.read();
    else this.readFor = "";
  }

  /**
   * Whether another look may find more files here.
   * @param {Detail} detail
   */
  mayBring({ results_complete, results_here, results_host }) {
    return !results_complete && (results_here || !results_host || results_host === this.panel.store.state?.host);
  }

  /** The job as it is known now. */
  get job() {
    return this.panel.store.state?.jobs[this.id] ?? this.detail?.job;
  }

  view() {
    const { panel } = this;
    const told = panel.store.state?.jobs[this.id];
    const { job } = this;
    this.refresh(told);
    const back = button(T.allJobs, () => panel.jobs.open(""), { key: "back", class: "back" });
    const failure = this.failure && failureBox(this.failure, () => void this.read());
    if (!job) return [back, failure ?? h("p", { class: "muted" }, T.loading)];
    const items = this.items();
    return [
      back,
      this.head(job),
      failure,
      this.failure?.status !== 404 && this.orders(job),
      this.why(job),
      items.length > 0 && this.grid(items),
      this.item(items),
      this.results(job),
    ];
  }

  /** Items as the stream tells them; before it does, as they were read. */
  items() {
    const live = this.panel.store.itemsInOrder;
    return live.length ? live : (this.detail?.items ?? []);
  }

  /** @param {Job} job */
  head(job) {
    const now_ms = this.panel.store.now_ms;
    const { total, done, failed, running } = job.counts;
    return h(
      "header",
      { key: "head" },
      h(
        "div",
        { class: "row" },
        h("h2", { class: "grow ellipsis", title: job.title }, job.title || T.untitled(job.id.slice(0, 8))),
        h("span", { class: `state ${colourOf(job)}`, "data-state": job.state }, T.jobStates[job.state]),
      ),
      h(
        "p",
        { class: "muted small" },
        [
          itemsOf(job),
          running > 0 && T.runningNow(running),
          job.tiles > 0 && T.tiles(job.tiles_done, job.tiles),
          whenOf(job, now_ms),
        ]
          .filter(Boolean)
          .join(" · "),
      ),
      bar(percent(done + failed, total), T.progress, failed ? "failed" : ""),
      h(
        "p",
        { class: "muted small" },
        [
          T.submitted(job.user, job.host, ago(job.created_ms, now_ms)),
          " · ",
          h("code", { key: "id" }, job.id),
        ],
      ),
      this.detail?.owner &&
        h("details", { key: "owner", class: "muted small" }, h("summary", null, T.facts), h("p", null, T.owner(this.detail.owner))),
    );
  }

  /** @param {Job} job */
  orders(job) {
    const isBusy = this.panel.busy.has(job.id);
    const can = (/** @type {import("./api_types.js").JobOrder} */ order) => job.orders.includes(order);
    return h(
      "div",
      { key: "orders", class: "row wrap toolbar" },
      can("pause") && button(T.jobOrders.pause, () => this.order("pause"), { key: "pause", disabled: isBusy, "data-order": "pause" }),
      can("resume") &&
        button(T.jobOrders.resume, () => this.order("resume"), {
          key: "resume",
          class: "first",
          disabled: isBusy,
          "data-order": "resume",
        }),
      can("collect") &&
        button(T.collectHere, () => this.order("collect"), {
          key: "collect",
          class: "first",
          disabled: isBusy,
          "data-order": "collect",
        }),
      can("retry") &&
        button(job.state === "cancelled" ? T.goOnWithRest : T.jobOrders.retry, () => this.order("retry"), {
          key: "retry",
          class: "first",
          disabled: isBusy,
          "data-order": "retry",
        }),
      can("cancel") &&
        button(T.jobOrders.cancel, () => this.cancel(job), {
          key: "cancel",
          class: "danger",
          disabled: isBusy,
          "data-order": "cancel",
        }),
      can("priority") &&
        h(
          "label",
          { key: "priority", class: "choice" },
          T.priority,
          h(
            "select",
            {
              value: String(job.priority),
              disabled: isBusy,
              "data-order": "priority",
              onchange: (/** @type {Event} */ event) =>
                this.order("priority", { priority: Number(/** @type {HTMLSelectElement} */ (event.target).value) }),
            },
            [9, 8, 7, 6, 5, 4, 3, 2, 1, 0].map((number) => h("option", { key: number, value: String(number) }, T.priorityWords(number))),
          ),
        ),
    );
  }

  /**
   * @param {import("./api_types.js").JobOrder} order
   * @param {{priority?: number}} [more]
   */
  order(order, more = {}) {
    const { id } = this;
    return this.panel.act(
      id,
      async () => (await this.panel.server.change("POST", `jobs/${encodeURIComponent(id)}/orders`, { order, ...more })).text,
    );
  }

  /** @param {Job} job */
  async cancel(job) {
    const words = T.cancelWords(Math.max(1, job.counts.total - job.counts.done - job.stages));
    if (await this.panel.dialog.confirm({ title: T.cancelTitle, words, action: T.jobOrders.cancel })) await this.order("cancel");
  }

  /** @param {Job} job */
  why(job) {
    const error = this.detail?.error;
    if (error && job.state === "failed") return errorBox(error);
    return [
      job.reason && h("p", { key: "reason", class: `reason ${colourOf(job)}` }, inPageWords(job.reason)),
      remedyLine(job.remedy),
    ];
  }

  /** @param {Item[]} items */
  grid(items) {
    const width = this.window.box?.clientWidth || 320;
    const perRow = Math.max(1, Math.floor(width / CELL_PX));
    const rows = Math.min(Math.max(3, Math.floor((innerHeight * 0.55) / CELL_PX)), Math.ceil(items.length / perRow));
    return h(
      "div",
      { key: "grid", class: "window-place grid", style: `height: ${rows * CELL_PX}px` },
      windowedList(this.window, {
        label: T.itemGrid(items.length),
        items,
        keyOf: (item) => String(item.index),
        rowHeight: CELL_PX,
        perRow,
        row: (item, props) =>
          memo(
            String(item.index),
            [item, props.style, props.tabindex, this.chosen === item.index, this.smallOf(item), !!this.job?.ended_ms],
            () => this.cell(item, props),
          ),
      }),
    );
  }

  /**
   * @param {Item} item
   * @param {import("./dom.js").Props} props
   */
  cell(item, props) {
    const choose = () => {
      this.chosen = this.chosen === item.index ? -1 : item.index;
      this.panel.update();
    };
    const path = this.smallOf(item);
    return h(
      "div",
      { ...props, class: "cell-place", tabindex: undefined, "data-key": undefined },
      h(
        "button",
        {
          type: "button",
          class: `cell ${item.state}`,
          tabindex: props.tabindex,
          "data-key": props["data-key"],
          "data-state": item.state,
          "aria-pressed": String(this.chosen === item.index),
          "aria-label": T.itemLabel(item.index, wordsOf(item, this.job), item.worker),
          onclick: choose,
        },
        path && this.panel.pictures.picture(path, "", "fill"),
        h(
          "span",
          { class: "cell-words" },
          item.state === "done" && path ? placeOf(item) : `${placeOf(item)} ${wordsOf(item, this.job)}`,
        ),
      ),
    );
  }

  /** @param {Item[]} items */
  item(items) {
    const item = items.find((each) => each.index === this.chosen);
    if (!item) return null;
    const failed = item.error;
    return h(
      "section",
      { key: "item", class: "card", "aria-label": T.itemTitle(item.index) },
      h(
        "header",
        { class: "row" },
        h("h3", { class: "grow" }, T.itemTitle(item.index)),
        h("span", { class: `state ${failed ? "red" : "grey"}` }, wordsOf(item, this.job)),
      ),
      h(
        "p",
        { class: "muted small" },
        [
          T.itemKinds[item.kind],
          item.worker,
          item.seconds != null && duration(item.seconds),
          item.seed && T.seed(item.seed),
          item.attempts > 0 && T.attempts(item.attempts),
        ]
          .filter(Boolean)
          .join(" · "),
      ),
      failed && errorBox(failed),
      this.made(item),
    );
  }

  /**
   * Whether there is a preview of an item, as far as is known.
   * @param {Item} item
   * @param {number} side
   */
  hasPreview(item, side) {
    return item.preview > 0 && !this.panel.pictures.isLost(previewPath(this.id, item.index, item.preview, side));
  }

  /**
   * Where the picture for an item's cell is: its preview, or the file that it has left; empty where there is neither.
   * @param {Item} item
   */
  smallOf(item) {
    if (this.hasPreview(item, 128)) return previewPath(this.id, item.index, item.preview, 128);
    const file = this.fileOf(item);
    const path = file ? this.thumbnailOf(file, 128) : "";
    return path && !this.panel.pictures.isLost(path) ? path : "";
  }

  /**
   * What an item has made: its preview; its file where that is not kept any more; or where it is to be looked for.
   * @param {Item} item
   */
  made(item) {
    const { pictures } = this.panel;
    const file = this.fileOf(item);
    if (this.hasPreview(item, 1024)) {
      const path = previewPath(this.id, item.index, item.preview, 1024);
      return h("div", { key: "made", class: "large-picture" }, pictures.picture(path, T.previewOf(item.index), "large"));
    }
    const large = file ? this.thumbnailOf(file, 1024) : "";
    if (file && !pictures.isLost(large))
      return h("div", { key: "made-file", class: "large-picture" }, pictures.picture(large, file.name, "large"));
    if (item.state !== "done") return null;
    return h("p", { key: "made-words", class: "muted" }, this.detail?.results.some(isPicture) ? T.previewInFiles : T.previewGone);
  }

  /**
   * The picture that an item has left, where that is certain.
   * @param {Item} item
   */
  fileOf(item) {
    const { pictures } = this;
    return pictures.get(item.index) ?? (pictures.size === 0 && this.only && this.items().length === 1 ? this.only : null);
  }

  /** @param {Job} job */
  results(job) {
    const { detail } = this;
    if (!detail?.results_host) return null;
    const isHere = detail.results_here || detail.results_host !== this.panel.store.state?.host;
    return h(
      "section",
      { key: "results", class: "results", "aria-label": T.results },
      h("h3", null, T.results),
      detail.results.length
        ? h(
            "ul",
            { class: "files" },
            detail.results.map((file) => this.file(file)),
          )
        : h("p", { class: "muted" }, this.whyNone(job, detail)),
      job.retried && job.stages > 0 && detail.results.length > 0 && h("p", { key: "twice", class: "muted small" }, T.savedTwice),
      isHere && detail.results_folder && h("p", { class: "muted small" }, T.resultsFolder, h("code", null, detail.results_folder)),
    );
  }

  /**
   * Why no file is shown.
   * @param {Job} job
   * @param {Detail} detail
   */
  whyNone(job, { results_complete, results_here, results_host }) {
    const { state } = this.panel.store;
    if (!results_here && results_host !== state?.host) return T.resultsElsewhere(results_host);
    const isPrompt = state?.kind === "comfyui" && job.mine;
    if (!results_complete) return isPrompt ? T.resultsLater : T.noResultsYet;
    if (isPrompt) return T.resultsNotListed;
    return results_here ? T.noResults : T.resultsOfComfy;
  }

  /**
   * Where a small one of a picture is: whole ones are too large to be shown by the hundred.
   * @param {ResultFile} file
   * @param {number} side
   */
  thumbnailOf(file, side) {
    return `${this.pathOf(file)}?side=${side}`;
  }

  /** @param {ResultFile} file */
  pathOf(file) {
    return `jobs/${encodeURIComponent(this.id)}/results/${file.path.split("/").map(encodeURIComponent).join("/")}`;
  }

  /** @param {ResultFile} file */
  file(file) {
    const path = this.pathOf(file);
    const thumbnail = this.thumbnailOf(file, 320);
    const isThere = !this.panel.pictures.isLost(thumbnail);
    return h(
      "li",
      { key: file.path, class: "file" },
      isPicture(file) &&
        isThere &&
        h(
          "button",
          { type: "button", class: "picture-button", "aria-label": T.look(file.name), onclick: () => this.look(file, path) },
          this.panel.pictures.picture(thumbnail, file.name, "fill"),
        ),
      h("span", { class: "ellipsis small", title: file.name }, file.name),
      h(
        "span",
        { class: "row wrap small muted" },
        h("span", { class: "grow" }, [file.item !== null && T.ofItem(file.item), bytes(file.size_bytes)].filter(Boolean).join(" · ")),
        isFilm(file) &&
          button(T.play, () => this.look(file, path), { key: "play", class: "small-button", "aria-label": T.playOf(file.name) }),
        isPicture(file) &&
          !isThere &&
          button(T.lookAt, () => this.look(file, path), { key: "look", class: "small-button", "aria-label": T.look(file.name) }),
        button(T.download, () => this.download(file, path), {
          key: "download",
          disabled: this.panel.busy.has(`file ${file.path}`),
          class: "small-button",
          "aria-label": T.downloadOf(file.name),
        }),
      ),
    );
  }

  /**
   * @param {ResultFile} file
   * @param {string} path
   */
  look(file, path) {
    const { pictures } = this.panel;
    pictures.forgetLost(path);
    this.panel.dialog.open({
      title: file.name,
      wide: true,
      content: () => [
        pictures.isLost(path)
          ? h("p", { key: "lost", class: "muted" }, T.fileNotShown)
          : h(
              "div",
              { key: "shown", class: "large-picture" },
              isFilm(file) ? pictures.film(path, file) : pictures.picture(path, file.name, "large"),
            ),
        h(
          "div",
          { key: "orders", class: "row end" },
          button(T.download, () => this.download(file, path), { class: "first", disabled: this.panel.busy.has(`file ${file.path}`) }),
        ),
      ],
    });
  }

  /**
   * @param {ResultFile} file
   * @param {string} path
   */
  download(file, path) {
    return this.panel.act(`file ${file.path}`, async () => keepFile(await this.panel.server.blob(path), file.name));
  }
}

/**
 * What an item is called in its cell.
 * @param {Item} item
 */
function placeOf({ index, kind }) {
  return kind === "last" || kind === "prepare" ? T.itemKinds[kind] : String(index);
}

/** @param {ResultFile} file */
function isPicture({ media_type }) {
  return media_type.startsWith("image/");
}

/**
 * Whether it is played: a video or a sound.
 * @param {ResultFile} file
 */
function isFilm({ media_type }) {
  return media_type.startsWith("video/") || media_type.startsWith("audio/");
}

/** @param {import("./api_types.js").ItemError} error */
function errorBox(error) {
  const node = error.node_class || error.node_id ? T.atNode(error.node_class, error.node_id) : "";
  return h(
    "div",
    { key: "error", class: "banner bad" },
    h("p", null, h("strong", null, inPageWords(error.message))),
    remedyLine(error.remedy),
    h("p", { class: "small", title: error.code }, [node, error.worker && T.onWorker(error.worker)].filter(Boolean).join(" · ")),
    error.traceback &&
      h(
        "details",
        null,
        h("summary", null, T.traceback),
        h("pre", { tabindex: 0, role: "region", "aria-label": T.traceback }, error.traceback),
      ),
  );
}

/**
 * @param {{message: string, remedy?: string}} failure
 * @param {() => void} again
 */
function failureBox({ message, remedy }, again) {
  return h(
    "div",
    { key: "failure", class: "banner bad", role: "alert" },
    h("p", null, inPageWords(message)),
    remedy && h("p", null, inPageWords(remedy)),
    button(T.tryNow, again),
  );
}
