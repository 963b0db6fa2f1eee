// Requests to the pack's routes.  The token comes by itself in a browser on ComfyUI's host; elsewhere the user is asked for it once.
import { api } from "../../scripts/api.js";
import { T } from "./texts.js";

const HEADER = "X-Distributed-Comfy-Token";
const KEPT_AS = "distributed-comfy.token";
const TOKEN_MS = 30_000;

let token = localStorage.getItem(KEPT_AS) ?? "";

/**
 * JSON of a GET; throws an Error with the server's words.
 * @param {string} path
 */
export async function read(path) {
  return answerOf(await api.fetchApi(path, { cache: "no-store" }));
}

/**
 * JSON of a POST that changes something.
 * @param {string} path
 * @param {object} [body]
 */
export async function change(path, body = {}) {
  return answerOf(await withToken(path, { method: "POST", body: JSON.stringify(body) }));
}

/**
 * JSON of a GET that needs the token.
 * @param {string} path
 */
export async function readPrivate(path) {
  return answerOf(await withToken(path, { cache: "no-store" }));
}

/** The token that was found before; empty where none was. */
export function keptToken() {
  return token;
}

/**
 * @param {string} path
 * @param {RequestInit} options
 */
async function withToken(path, options) {
  const send = () => api.fetchApi(path, { ...options, headers: { "Content-Type": "application/json", [HEADER]: token } });
  const first = token ? await send() : null;
  if (first && first.status !== 401) return first;
  await findToken();
  const second = await send();
  if (second.status === 401) localStorage.removeItem(KEPT_AS);
  return second;
}

async function findToken() {
  return (await givenToken()) || askUser();
}

/** The token as ComfyUI gives it to a browser on its own host; empty elsewhere. */
export async function givenToken() {
  const given = await api.fetchApi("/distributed_comfy/token", { method: "POST", signal: AbortSignal.timeout(TOKEN_MS) }).catch(() => {
    throw new Error(T.noAnswer);
  });
  if (!given.ok) return "";
  token = (await given.json()).token;
  return token;
}

/**
 * Use a token that the user has typed, also the next time.
 * @param {string} typed
 */
export function keepToken(typed) {
  token = typed;
  localStorage.setItem(KEPT_AS, typed);
}

function askUser() {
  const typed = (window.prompt(T.askToken) ?? "").trim();
  if (typed) keepToken(typed);
  token = typed;
  return typed;
}

/** @param {Response} response */
async function answerOf(response) {
  const answer = await response.json().catch(() => ({}));
  if (!response.ok) throw new Error(answer.error ?? `${response.status} ${response.statusText}`);
  return answer;
}
