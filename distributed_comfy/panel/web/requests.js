// Requests to the server, with the token; what it refuses comes as a Failure that says why and what to do.
import { duration } from "./format.js";
import { T } from "./texts.js";

const HEADER = "X-Distributed-Comfy-Token";
const READ_MS = 30_000;
const CHANGE_MS = 180_000; // the doctor runs an item on each worker

/** Why something was not done. */
export class Failure extends Error {
  /**
   * @param {number} status 0: nobody answered
   * @param {{code?: string, message: string, remedy?: string, fields?: Record<string, string>}} said
   */
  constructor(status, said) {
    super(said.message);
    this.status = status;
    this.code = said.code ?? "";
    this.remedy = said.remedy ?? "";
    /** Where fields of what was sent are wrong: place -> what must be there. */
    this.fields = said.fields ?? {};
  }
}

/**
 * Where the token comes from.
 * @typedef {object} TokenSource
 * @property {() => Promise<string>} get the token; empty where there is none yet
 * @property {() => Promise<string>} renew another one, after the server has refused that; empty where there is none
 */

/** The server's resources. */
export class Server {
  /**
   * @param {URL} base address of the API
   * @param {TokenSource} tokens
   */
  constructor(base, tokens) {
    this.base = base;
    this.tokens = tokens;
    /** Whether the last request had one: then a refusal means that it is wrong, not that it is missing. */
    this.hadToken = false;
  }

  /**
   * @param {string} path below the API's address
   * @param {{[name: string]: string | number | undefined}} [query]
   */
  address(path, query = {}) {
    const address = new URL(path.replace(/^\//, ""), this.base);
    for (const [name, value] of Object.entries(query))
      if (value !== undefined && value !== "") address.searchParams.set(name, String(value));
    return address;
  }

  /**
   * The JSON that a resource gives.
   * @param {string} path
   * @param {{[name: string]: string | number | undefined}} [query]
   * @param {AbortSignal} [signal]
   */
  async read(path, query, signal) {
    return (await this.ask("GET", this.address(path, query), { signal })).json();
  }

  /**
   * Change something.
   * @param {"POST" | "PATCH" | "DELETE"} method
   * @param {string} path
   * @param {object} [body]
   */
  async change(method, path, body = {}) {
    const answer = await this.ask(method, this.address(path), {
      body: JSON.stringify(body),
      headers: { "Content-Type": "application/json" },
    });
    const text = await answer.text();
    return text ? JSON.parse(text) : {};
  }

  /**
   * A file, as a picture or to be kept.
   * @param {string} path
   * @param {{[name: string]: string | number | undefined}} [query]
   */
  async blob(path, query) {
    return (await this.ask("GET", this.address(path, query))).blob();
  }

  /**
   * A stream of events.
   * @param {string} path
   * @param {AbortSignal} signal
   * @param {{[name: string]: string | number | undefined}} [query]
   */
  stream(path, signal, query) {
    return this.ask("GET", this.address(path, query), { signal });
  }

  /**
   * @param {string} method
   * @param {URL} address
   * @param {RequestInit} [options]
   */
  async ask(method, address, options = {}) {
    const token = await this.tokens.get();
    let answer = await this.send(method, address, token, options);
    if (answer.status === 401) {
      const another = await this.tokens.renew();
      if (another && another !== token) answer = await this.send(method, address, another, options);
      this.hadToken = !!(another || token);
    }
    if (!answer.ok) throw await failureOf(answer);
    return answer;
  }

  /**
   * @param {string} method
   * @param {URL} address
   * @param {string} token
   * @param {RequestInit} options
   */
  async send(method, address, token, options) {
    const ms = method === "GET" ? READ_MS : CHANGE_MS;
    const given = options.signal;
    const ending = new AbortController(); // not AbortSignal.any, which browsers of before 2024 do not have
    let isSlow = false;
    const timer = setTimeout(() => ((isSlow = true), ending.abort()), ms); // until the answer begins: a large file may come slowly
    const stop = () => ending.abort(given?.reason);
    if (given?.aborted) stop();
    given?.addEventListener("abort", stop, { once: true });
    const { signal } = ending;
    try {
      return await fetch(address, { ...options, signal, method, cache: "no-store", headers: { ...options.headers, [HEADER]: token } });
    } catch (error) {
      if (given?.aborted) throw error;
      if (isSlow) throw new Failure(0, { code: "page.slow", message: T.slow(duration(ms / 1000)), remedy: T.slowRemedy });
      throw new Failure(0, { code: "page.unreachable", message: T.unreachable, remedy: T.unreachableRemedy });
    } finally {
      clearTimeout(timer);
    }
  }
}

/** @param {Response} answer */
async function failureOf(answer) {
  const body = await answer.json().catch(() => ({}));
  const said = typeof body.error === "string" ? { message: body.error } : body.error;
  return new Failure(answer.status, said ?? { message: T.refused(answer.status, answer.statusText) });
}
