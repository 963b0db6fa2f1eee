// The one stream of events from the server to the page: read with fetch, because it needs the token's header; begun again when it breaks.

const FIRST_WAIT_MS = 500;
const LONGEST_WAIT_MS = 10_000;
const SILENCE_MS = 25_000; // the server says something every 10 s

/**
 * @typedef {object} Listener
 * @property {(name: string, content: any) => void} event
 * @property {(state: "connecting" | "open" | "broken" | "refused", error?: Error) => void} state
 *
 * @typedef {(signal: AbortSignal) => Promise<Response>} Open rejects where the server cannot be reached
 */

/**
 * Follow a stream until it is told to end.
 * @param {Open} open
 * @param {Listener} listener
 * @returns {{end: () => void, again: () => void}} `again`: do not wait for the next try
 */
export function followEvents(open, listener) {
  const ending = new AbortController();
  let waited = FIRST_WAIT_MS;
  /** @type {() => void} */
  let hurry = () => {};

  async function run() {
    while (!ending.signal.aborted) {
      listener.state("connecting");
      try {
        await readOnce(open, ending.signal, listener, () => (waited = FIRST_WAIT_MS));
        listener.state("broken");
      } catch (error) {
        if (ending.signal.aborted) return;
        listener.state(isRefusal(error) ? "refused" : "broken", /** @type {Error} */ (error));
      }
      await new Promise((done) => {
        hurry = () => done(null);
        setTimeout(done, waited * (0.75 + Math.random() / 2));
      });
      waited = Math.min(LONGEST_WAIT_MS, waited * 2);
    }
  }

  run();
  return {
    end() {
      ending.abort();
      hurry();
    },
    again: () => hurry(),
  };
}

/** @param {any} error */
function isRefusal(error) {
  return error?.status === 401 || error?.status === 403;
}

/**
 * Read one stream to its end.
 * @param {Open} open
 * @param {AbortSignal} ended
 * @param {Listener} listener
 * @param {() => void} opened
 */
async function readOnce(open, ended, listener, opened) {
  const quiet = new AbortController();
  const stop = () => quiet.abort();
  ended.addEventListener("abort", stop);
  let timer = setTimeout(stop, SILENCE_MS);
  try {
    const response = await open(quiet.signal);
    const reader = /** @type {ReadableStream<Uint8Array>} */ (response.body).getReader();
    const text = new TextDecoder();
    const parser = new EventParser(listener.event);
    opened();
    listener.state("open");
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      clearTimeout(timer);
      timer = setTimeout(stop, SILENCE_MS);
      parser.take(text.decode(value, { stream: true }));
    }
  } finally {
    clearTimeout(timer);
    ended.removeEventListener("abort", stop);
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
    if (content.length) this.found(name, JSON.parse(content.join("\n")));
  }
}
