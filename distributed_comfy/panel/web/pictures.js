// Pictures behind the token: fetched when they come into sight, a few at a time, kept as object addresses until they take too much memory.
import { h } from "./dom.js";

const MOST_KEPT_BYTES = 64 * 2 ** 20;
const AT_A_TIME = 4;
const PAUSES_MS = [2000, 8000, 30_000]; // before a picture that did not come is tried again

/** What fetches and keeps the pictures of one panel. */
export class Pictures {
  /**
   * @param {import("./requests.js").Server} server
   * @param {() => void} changed called when a picture is lost
   */
  constructor(server, changed) {
    this.server = server;
    this.changed = changed;
    /** Paths of those that are not there, or did not come however often they were tried. @type {Set<string>} */
    this.lost = new Set();
    /** By path; the one used last is at the end. @type {Map<string, {address: string, size: number}>} */
    this.kept = new Map();
    this.keptBytes = 0;
    /** @type {Map<Element, () => void>} */
    this.waiting = new Map();
    /** @type {(() => Promise<void>)[]} */
    this.queue = [];
    this.running = 0;
    this.sight = new IntersectionObserver((entries) => {
      for (const entry of entries) if (entry.isIntersecting) this.waiting.get(entry.target)?.();
    });
  }

  /**
   * Describe a picture; another path is shown in its place when it has come, so that a preview does not flicker.
   * @param {string} path below the API's address
   * @param {string} label what a screen reader says
   * @param {string} [kind] class of the element
   */
  picture(path, label, kind = "picture") {
    return h("img", {
      key: "picture",
      class: kind,
      alt: label,
      draggable: "false",
      seen: (/** @type {HTMLImageElement} */ image) => this.show(image, path),
      born: (/** @type {HTMLImageElement} */ image) => () => this.forget(image),
    });
  }

  /**
   * @param {HTMLImageElement} image
   * @param {string} path
   */
  show(image, path) {
    if (image.dataset.path === path) return;
    image.dataset.path = path;
    image.dataset.state ??= "waiting";
    this.waiting.set(image, () => {
      this.forget(image);
      this.enqueue(() => this.load(image, path));
    });
    this.sight.unobserve(image); // an observer tells about what is in sight already only when it begins
    this.sight.observe(image);
  }

  /** @param {Element} image */
  forget(image) {
    this.sight.unobserve(image);
    this.waiting.delete(image);
  }

  /** @param {() => Promise<void>} work */
  enqueue(work) {
    this.queue.push(work);
    this.next();
  }

  next() {
    while (this.running < AT_A_TIME && this.queue.length) {
      const work = /** @type {() => Promise<void>} */ (this.queue.shift());
      this.running += 1;
      work().finally(() => {
        this.running -= 1;
        this.next();
      });
    }
  }

  /**
   * @param {HTMLImageElement} image
   * @param {string} path
   * @param {number} [failures] before
   */
  async load(image, path, failures = 0) {
    if (!image.isConnected || image.dataset.path !== path) return;
    try {
      image.src = await this.addressOf(path);
      image.dataset.state = "shown";
    } catch (error) {
      if (image.dataset.path === path) image.dataset.state = "missing";
      const status = /** @type {{status?: number}} */ (error).status;
      const pause_ms = status === 404 || status === 400 ? 0 : PAUSES_MS[failures];
      if (pause_ms) setTimeout(() => this.enqueue(() => this.load(image, path, failures + 1)), pause_ms);
      else this.lose(path);
    }
  }

  /** @param {string} path */
  lose(path) {
    this.lost.add(path);
    this.changed();
  }

  /**
   * Whether it is known that a picture cannot be shown.
   * @param {string} path
   */
  isLost(path) {
    return this.lost.has(path);
  }

  /**
   * Try what was lost again.
   * @param {string} [path] all where it is absent
   */
  forgetLost(path) {
    if (path) this.lost.delete(path);
    else this.lost.clear();
  }

  /**
   * Describe a video or a sound, with what plays it.
   * @param {string} path below the API's address
   * @param {{name: string, media_type: string}} file
   */
  film(path, { name, media_type }) {
    const tag = media_type.startsWith("video/") ? "video" : "audio";
    return h(tag, {
      key: "film",
      class: "large",
      controls: true,
      "aria-label": name,
      born: (/** @type {HTMLMediaElement} */ player) => {
        let address = "";
        this.server.blob(path).then(
          (content) => player.isConnected && (player.src = address = URL.createObjectURL(content)),
          () => this.lose(path),
        );
        return () => URL.revokeObjectURL(address);
      },
    });
  }

  /** @param {string} path */
  async addressOf(path) {
    const known = this.kept.get(path);
    if (known) {
      this.kept.delete(path);
      this.kept.set(path, known);
      return known.address;
    }
    const content = await this.server.blob(path);
    this.drop(path); // fetched twice at the same time
    const picture = { address: URL.createObjectURL(content), size: content.size };
    this.kept.set(path, picture);
    this.keptBytes += picture.size;
    for (const old of this.kept.keys()) {
      if (this.keptBytes <= MOST_KEPT_BYTES || old === path) break;
      this.drop(old);
    }
    return picture.address;
  }

  /** @param {string} path */
  drop(path) {
    const old = this.kept.get(path);
    if (!old) return;
    URL.revokeObjectURL(old.address);
    this.kept.delete(path);
    this.keptBytes -= old.size;
  }

  end() {
    this.sight.disconnect();
    for (const path of this.kept.keys()) this.drop(path);
  }
}

/**
 * Let the browser keep a file.
 * @param {Blob} content
 * @param {string} name
 */
export function keepFile(content, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(content);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}
