// The section of jobs: the queue as a list of any length, and beside it (or instead, where it is narrow) one job.
import { h, memo } from "./dom.js";
import { percent } from "./format.js";
import { colourOf, itemsOf, whenOf } from "./job_words.js";
import { JobPlace } from "./job_view.js";
import { commandBox } from "./copy.js";
import { T } from "./texts.js";
import { ListWindow, windowedList } from "./window_list.js";

const ROW_PX = 72;
const GAP_PX = 6;
const FILTERS = /** @type {const} */ (["all", "active", "ended"]);

/**
 * @typedef {import("./api_types.js").Job} Job
 */

/** What the section remembers. */
export class JobsPlace {
  /** @param {import("./panel.js").Panel} panel */
  constructor(panel) {
    this.panel = panel;
    this.window = new ListWindow(() => panel.update());
    this.detail = new JobPlace(panel);
    /** @type {typeof FILTERS[number]} */
    this.filter = "all";
    this.words = "";
  }

  /**
   * Show a job; none where it is empty.
   * @param {string} job
   */
  open(job) {
    const before = this.detail.id;
    this.detail.open(job);
    this.panel.go("jobs");
    if (!job && before) this.window.toFocus = this.window.active = before;
  }

  view() {
    const all = this.panel.store.jobsInOrder;
    const job = this.detail.id;
    if (!all.length && !job) return this.empty();
    const shown = all.filter((each) => this.isShown(each));
    if (!shown.length) this.window.toFocus = "";
    return h(
      "div",
      { class: job ? "split has-detail" : "split" },
      h(
        "section",
        { key: "list", class: "job-list", "aria-label": T.sections.jobs },
        this.filters(all),
        shown.length ? this.list(shown) : h("p", { class: "muted" }, T.noSuchJobs),
      ),
      job && h("section", { key: "detail", class: "job-detail", "aria-label": T.jobDetail }, this.detail.view()),
    );
  }

  empty() {
    return h(
      "div",
      { class: "empty" },
      h("h2", null, T.noJobs),
      h("p", null, this.panel.kind === "comfyui" ? T.noJobsComfy : T.noJobsWords),
      this.panel.kind === "page" && commandBox("distributed-comfy run workflow_api.json --items 4"),
    );
  }

  /** @param {Job[]} all */
  filters(all) {
    const counts = {
      all: all.length,
      active: all.filter((job) => !job.ended_ms).length,
      ended: all.filter((job) => job.ended_ms).length,
    };
    return h(
      "div",
      { key: "filters", class: "row wrap toolbar" },
      h(
        "div",
        { class: "chips row", role: "group", "aria-label": T.filterJobs },
        FILTERS.map((name) =>
          h(
            "button",
            {
              key: name,
              type: "button",
              class: "chip",
              "aria-pressed": String(this.filter === name),
              onclick: () => this.choose(name),
            },
            T.jobFilters[name](counts[name]),
          ),
        ),
      ),
      h("input", {
        type: "search",
        class: "grow",
        placeholder: T.findJob,
        "aria-label": T.findJob,
        oninput: (/** @type {Event} */ event) => {
          this.words = /** @type {HTMLInputElement} */ (event.target).value.trim().toLowerCase();
          this.panel.update();
        },
      }),
    );
  }

  /** @param {typeof FILTERS[number]} filter */
  choose(filter) {
    this.filter = filter;
    this.panel.update();
  }

  /** @param {Job} job */
  isShown(job) {
    if (this.filter === "active" && job.ended_ms) return false;
    if (this.filter === "ended" && !job.ended_ms) return false;
    return !this.words || `${job.title} ${job.id} ${job.user} ${job.host} ${job.state}`.toLowerCase().includes(this.words);
  }

  /** @param {Job[]} jobs */
  list(jobs) {
    const now_ms = this.panel.store.now_ms;
    return h(
      "div",
      { key: "rows", class: "window-place" },
      windowedList(this.window, {
        label: T.sections.jobs,
        items: jobs,
        keyOf: (job) => job.id,
        rowHeight: ROW_PX,
        gap: GAP_PX,
        row: (job, props) => {
          const isOpen = job.id === this.detail.id;
          const second = Math.floor(job.ended_ms && now_ms - job.ended_ms > 60_000 ? now_ms / 15_000 : now_ms / 1000);
          return memo(job.id, [job, props.style, props.tabindex, props["aria-posinset"], props["aria-setsize"], isOpen, second], () =>
            this.row(job, props, isOpen, now_ms),
          );
        },
      }),
    );
  }

  /**
   * @param {Job} job
   * @param {import("./dom.js").Props} props
   * @param {boolean} isOpen
   * @param {number} now_ms
   */
  row(job, props, isOpen, now_ms) {
    const open = () => this.open(job.id);
    const { total, done, failed } = job.counts;
    const { style, role, "aria-setsize": size, "aria-posinset": place, ...reached } = props;
    const content = h(
      "div",
      {
        ...reached,
        role: "button",
        class: isOpen ? "job-row open" : "job-row",
        "aria-current": isOpen ? "true" : undefined,
        "data-state": job.state,
        onclick: open,
        onkeydown: (/** @type {KeyboardEvent} */ event) => (event.key === "Enter" || event.key === " ") && (event.preventDefault(), open()),
      },
      h(
        "div",
        { class: "row" },
        h("span", { class: "grow ellipsis title" }, job.title || T.untitled(job.id.slice(0, 8))),
        h("span", { class: `state ${colourOf(job)}` }, T.jobStates[job.state]),
      ),
      h(
        "div",
        { class: "row small muted" },
        h("span", { class: "grow ellipsis" }, [itemsOf(job), whenOf(job, now_ms)].filter(Boolean).join(" · ")),
        h("span", { class: "ellipsis" }, job.mine ? T.mine : job.user),
      ),
      h(
        "div",
        { class: "bar thin", "aria-hidden": "true" },
        h("div", { class: failed ? "failed" : "", style: `transform: scaleX(${percent(done + failed, total) / 100})` }),
      ),
    );
    return h("div", { key: props.key, style, role, "aria-setsize": size, "aria-posinset": place, class: "row-place" }, content);
  }
}
