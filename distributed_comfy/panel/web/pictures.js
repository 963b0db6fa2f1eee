// Pictures behind the token: fetched when they come into sight, a few at a time, kept as object addresses until there are too many.
import { h } from "./dom.js";

const MOST_KEPT = 300;
const AT_A_TIME = 4;

/** What fetches and keeps the pictures of one panel. */
export class Pictures {
  /** @param {import("./requests.js").Server} server */
  constructor(server) {
    this.server = server;
    /** @type {Map<string, string>} path -> object address; the one used last is at the end */
    this.kept = new Map();
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
      this.queue.push(() => this.load(image, path));
      this.next();
    });
    this.sight.unobserve(image); // an observer tells about what is in sight already only when it begins
    this.sight.observe(image);
  }

  /** @param {Element} image */
  forget(image) {
    this.sight.unobserve(image);
    this.waiting.delete(image);
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
   */
  async load(image, path) {
    if (!image.isConnected || image.dataset.path !== path) return;
    try {
      image.src = await this.addressOf(path);
      image.dataset.state = "shown";
    } catch {
      image.dataset.state = "missing";
    }
  }

  /** @param {string} path */
  async addressOf(path) {
    const known = this.kept.get(path);
    if (known) {
      this.kept.delete(path);
      this.kept.set(path, known);
      return known;
    }
    const address = URL.createObjectURL(await this.server.blob(path));
    this.kept.set(path, address);
    for (const [old, oldAddress] of this.kept) {
      if (this.kept.size <= MOST_KEPT) break;
      URL.revokeObjectURL(oldAddress);
      this.kept.delete(old);
    }
    return address;
  }

  end() {
    this.sight.disconnect();
    for (const address of this.kept.values()) URL.revokeObjectURL(address);
    this.kept.clear();
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
