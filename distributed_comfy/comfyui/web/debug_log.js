// Detailed logs in the browser's console: the session, workers, jobs, what is under way, and ComfyUI's own events of prompts.
import { api } from "../../scripts/api.js";
import { read } from "./requests.js";

const EVERY_MS = 2000;
const EVENTS = ["execution_start", "execution_cached", "execution_success", "execution_error", "execution_interrupted", "executed"];
const MARK = "[distributed-comfy]";

export class DebugLog {
  #timer = null;
  #looking = false;
  #seen = new Map();
  #hear = (event) => this.#say("prompt", event.type, event.detail);

  /** Begin or end. */
  turn(on) {
    if (on === (this.#timer !== null)) return;
    if (on) {
      console.log(MARK, "debug: detailed logs are on");
      for (const name of EVENTS) api.addEventListener(name, this.#hear);
      this.#timer = setInterval(() => this.#look(), EVERY_MS);
      this.#look();
    } else {
      clearInterval(this.#timer);
      this.#timer = null;
      this.#seen.clear();
      for (const name of EVENTS) api.removeEventListener(name, this.#hear);
      console.log(MARK, "debug: detailed logs are off");
    }
  }

  async #look() {
    if (this.#looking) return; // a busy page or server: the next time will do
    this.#looking = true;
    try {
      await this.#tellAll();
      this.#seen.delete("status cannot be read");
    } catch (error) {
      this.#tell("status", "cannot be read", error.message);
    } finally {
      this.#looking = false;
    }
  }

  async #tellAll() {
    const status = await read("/distributed_comfy/status");
    this.#tell("session", status.servers, { session: status.session, reason: status.reason, agent: status.host.agent });
    if (status.session !== "ready") return;
    const [workers, { jobs }] = await Promise.all([read("/distributed_comfy/workers"), read("/distributed_comfy/jobs")]);
    for (const worker of workers.local.workers) this.#tell("local worker", worker.name, { phase: worker.phase, reason: worker.reason });
    for (const worker of workers.cluster) this.#worker(worker);
    for (const job of jobs) this.#tell("job", job.job, { state: job.state, items: job.counts, title: job.title, reason: job.reason });
    this.#forget("worker", workers.cluster.map((worker) => worker.name));
  }

  #worker(worker) {
    const status = worker.status;
    this.#tell("worker", worker.name, { state: worker.state, host: worker.host, device: worker.device, items: worker.items });
    for (const item of status?.items ?? []) {
      const node = `${item.node_class || "node"} ${item.node_id}`.trim();
      this.#tell("distribution", item.item, { worker: worker.name, node, step: `${item.value}/${item.maximum}`, attempt: item.attempt });
      if (item.shipping) this.#tell("traffic", item.item, { from: worker.name, what: item.waits || "result on its way into the blob store" });
    }
    if (status) this.#tell("traffic", worker.name, { items_done: status.items_done, items_failed: status.items_failed });
  }

  #forget(kind, names) {
    for (const key of this.#seen.keys()) {
      if (key.startsWith(`${kind} `) && !names.includes(key.slice(kind.length + 1))) {
        this.#seen.delete(key);
        this.#say(kind, key.slice(kind.length + 1), "is gone");
      }
    }
  }

  /** Say what has changed since it was last said. */
  #tell(kind, name, what) {
    const text = JSON.stringify(what);
    if (this.#seen.get(`${kind} ${name}`) === text) return;
    this.#seen.set(`${kind} ${name}`, text);
    this.#say(kind, name, what);
  }

  #say(kind, name, what) {
    console.log(MARK, kind, name, what);
  }
}
