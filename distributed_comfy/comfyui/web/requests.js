// Requests to the pack's routes.  The token comes by itself in a browser on ComfyUI's host; elsewhere the user is asked for it once.
import { api } from "../../scripts/api.js";

const HEADER = "X-Distributed-Comfy-Token";
const KEPT_AS = "distributed-comfy.token";

let token = localStorage.getItem(KEPT_AS) ?? "";

/** JSON of a GET; throws an Error with the server's words. */
export async function read(path) {
  return answerOf(await api.fetchApi(path, { cache: "no-store" }));
}

/** JSON of a POST that changes something. */
export async function change(path, body = {}) {
  return answerOf(await withToken(path, { method: "POST", body: JSON.stringify(body) }));
}

/** JSON of a GET that needs the token. */
export async function readPrivate(path) {
  return answerOf(await withToken(path, { cache: "no-store" }));
}

async function withToken(path, options) {
  const send = () => api.fetchApi(path, { ...options, headers: { "Content-Type": "application/json", [HEADER]: token } });
  const first = token ? await send() : null;
  if (first && first.status !== 401) return first;
  token = await findToken();
  const second = await send();
  if (second.status === 401) localStorage.removeItem(KEPT_AS);
  return second;
}

async function findToken() {
  const given = await api.fetchApi("/distributed_comfy/token", { method: "POST" });
  if (given.ok) return (await given.json()).token;
  const typed = window.prompt("Token of distributed-comfy (on ComfyUI's host, `distributed-comfy comfyui token` prints it):") ?? "";
  if (typed.trim()) localStorage.setItem(KEPT_AS, typed.trim());
  return typed.trim();
}

async function answerOf(response) {
  const answer = await response.json().catch(() => ({}));
  if (!response.ok) throw new Error(answer.error ?? `${response.status} ${response.statusText}`);
  return answer;
}
