// The one stream of events from the server to the page: read with fetch, because it needs the token's header; begun again when it breaks.
//
// A page that nobody sees for a while ends its streams: a browser keeps only six connections to a server, for all its tabs together.
import { Failure } from "./requests.js";
import { T } from "./texts.js";

const FIRST_WAIT_MS = 500;
const LONGEST_WAIT_MS = 10_000;
const SILENCE_MS = 25_000; // the server says something every 10 s
const HIDDEN_MS = 60_000;

/**
 * @typedef {object} Listener
 * @property {(name: string, content: any) => void} event
 * @property {(state: "connecting" | "open" | "broken" | "refused", error?: Error) => void} state
 *
 * @typedef {(signal: AbortSignal) => Promise<Response>} Open rejects where the server cannot be reached
 *
 * @typedef {object} Patience
 * @property {number} [silence_ms] after so long without a word the stream is taken for broken
 * @property {number} [hidden_ms] after so long out of sight it is ended until the page is seen again
 */

/**
 * Follow a stream until it is told to end.
 * @param {Open} open
 * @param {Listener} listener
 * @param {Patience} [patience]
 * @returns {{end: () => void, again: () => void}} `again`: do not wait for the next try
 */
export function followEvents(open, listener, { silence_ms = SILENCE_MS, hidden_ms = HIDDEN_MS } = {}) {
  let isEnded = false;
  let isResting = false;
  let waited = FIRST_WAIT_MS;
  let reading = new AbortController();
  let timer = 0;
  /** @type {() => void} */
  let hurry = () => {};

  function look() {
    clearTimeout(timer);
    if (document.visibilityState === "visible") {
      isResting = false;
      hurry();
    } else {
      timer = setTimeout(rest, hidden_ms);
    }
  }

  function rest() {
    isResting = true;
    reading.abort();
  }

  async function run() {
    while (!isEnded) {
      listener.state("connecting");
      reading = new AbortController();
      try {
        await readOnce(open, reading, listener, silence_ms, () => (waited = FIRST_WAIT_MS));
        if (isEnded) return;
        listener.state("broken");
      } catch (error) {
        if (isEnded) return;
        if (isResting) listener.state("connecting");
        else listener.state(isRefusal(error) ? "refused" : "broken", /** @type {Error} */ (error));
      }
      await pause(waited * (0.75 + Math.random() / 2));
      waited = Math.min(LONGEST_WAIT_MS, waited * 2);
    }
  }

  /** @param {number} ms of a page that is seen; another one waits until it is */
  function pause(ms) {
    return new Promise((done) => {
      hurry = () => done(null);
      if (isEnded) done(null);
      else if (!isResting) setTimeout(() => isResting || done(null), ms);
    });
  }

  document.addEventListener("visibilitychange", look);
  look();
  run();
  return {
    end() {
      isEnded = true;
      clearTimeout(timer);
      document.removeEventListener("visibilitychange", look);
      reading.abort();
      hurry();
    },
    again: () => hurry(),
  };
}

/** @param {any} error */
function isRefusal(error) {
  return error?.status === 401;
}

/**
 * Read one stream to its end; however that comes, its connection is let go.
 * @param {Open} open
 * @param {AbortController} reading
 * @param {Listener} listener
 * @param {number} silence_ms
 * @param {() => void} understood called when something has come
 */
async function readOnce(open, reading, listener, silence_ms, understood) {
  const stop = () => reading.abort(new Failure(0, { code: "page.silent", message: T.unreachable, remedy: T.unreachableRemedy }));
  let timer = setTimeout(stop, silence_ms);
  try {
    const response = await open(reading.signal);
    const reader = /** @type {ReadableStream<Uint8Array>} */ (response.body).getReader();
    const text = new TextDecoder();
    const parser = new EventParser(listener.event);
    listener.state("open");
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      clearTimeout(timer);
      timer = setTimeout(stop, silence_ms);
      parser.take(text.decode(value, { stream: true }));
      understood();
    }
  } finally {
    clearTimeout(timer);
    reading.abort();
  }
}

/** Cuts a stream of text into server-sent events, whose content is JSON. */
export class EventParser {
  /** @param {(name: string, content: any) => void} found */
  constructor(found) {
    this.found = found;
    this.rest = "";
  }

  /** @param {string} text */
  take(text) {
    const lines = (this.rest + text).split("\n\n");
    this.rest = lines.pop() ?? "";
    for (const block of lines) this.event(block);
  }

  /** @param {string} block */
  event(block) {
    let name = "message";
    const content = [];
    for (const line of block.split("\n")) {
      if (line.startsWith("event:")) name = line.slice(6).trim();
      else if (line.startsWith("data:")) content.push(line.slice(5).trimStart());
    }
    if (content.length) this.found(name, read(content.join("\n")));
  }
}

/** @param {string} content */
function read(content) {
  try {
    return JSON.parse(content);
  } catch {
    throw new Failure(0, { code: "page.unreadable", message: T.unreadable, remedy: T.unreadableRemedy });
  }
}
