// How a job is, in a colour and a few words.
import { ago, duration, roughly } from "./format.js";
import { T } from "./texts.js";

/**
 * @typedef {import("./api_types.js").Job} Job
 */

/** @param {Job} job */
export function colourOf({ state }) {
  return { pending: "grey", running: "green", paused: "yellow", parked: "yellow", done: "done", failed: "red", cancelled: "grey" }[state];
}

/**
 * How many of its items are done; what prepares or ends a job was not asked for, and is named apart.
 * @param {Job} job
 */
export function itemsOf({ counts, stages, tiles, tiles_done, state }) {
  const total = counts.total - stages - tiles;
  const done = Math.min(counts.done - tiles_done, total);
  const more = stages && state !== "failed" && state !== "cancelled" ? (state === "done" ? T.stagesToo : T.stagesThen) : "";
  return total > 0 ? T.items(done, total, counts.failed) + more : "";
}

/**
 * How an item is; what an ended job has not made waits for nothing.
 * @param {import("./api_types.js").Item} item
 * @param {Job | undefined} job
 */
export function wordsOf({ state }, job) {
  const waits = state === "blocked" || state === "pending" || state === "waiting" || state === "stopped";
  return waits && job?.ended_ms ? T.notMade : T.itemStates[state];
}

/**
 * Its place in the queue and when it will be done, or when it was.
 * @param {Job} job
 * @param {number} now_ms
 */
export function whenOf(job, now_ms) {
  if (job.ended_ms) return T.took(duration((job.ended_ms - job.created_ms) / 1000), ago(job.ended_ms, now_ms));
  const ends = job.ends_ms > now_ms ? T.endsIn(roughly((job.ends_ms - now_ms) / 1000)) : "";
  return [job.position > 0 && T.position(job.position), ends].filter(Boolean).join(" · ");
}
