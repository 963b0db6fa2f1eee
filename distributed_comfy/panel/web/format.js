// Numbers and times as people read them; words come from texts.js.
import { T } from "./texts.js";

const KIB = 1024;
const LARGEST_POWER = 4; // TB

/**
 * Bytes with a unit that fits.
 * @param {number} count
 */
export function bytes(count) {
  let power = 0;
  let size = count;
  while (size >= 1000 && power < LARGEST_POWER) {
    size /= KIB;
    power += 1;
  }
  return T.bytes(power === 0 || size >= 100 ? String(Math.round(size)) : size.toFixed(1), power);
}

/**
 * A duration, at two units' accuracy.
 * @param {number} seconds
 */
export function duration(seconds) {
  const whole = Math.max(0, Math.round(seconds));
  if (whole < 10 && seconds > 0 && seconds < 9.95) return T.seconds(seconds.toFixed(1));
  if (whole < 60) return T.seconds(String(whole));
  if (whole < 3600) return T.minutes(Math.floor(whole / 60), whole % 60);
  if (whole < 86_400) return T.hours(Math.floor(whole / 3600), Math.floor((whole % 3600) / 60));
  return T.days(Math.floor(whole / 86_400), Math.floor((whole % 86_400) / 3600));
}

/**
 * A duration that is an estimate: no more accurate than it can be.
 * @param {number} seconds
 */
export function roughly(seconds) {
  const unit = seconds < 60 ? 5 : seconds < 600 ? 30 : seconds < 3600 ? 60 : 600;
  const whole = Math.max(1, Math.round(seconds / unit)) * unit;
  return whole < 60 ? T.seconds(String(whole)) : duration(whole);
}

/**
 * How long ago something was.
 * @param {number} at_ms
 * @param {number} now_ms
 */
export function ago(at_ms, now_ms) {
  const seconds = Math.max(0, (now_ms - at_ms) / 1000);
  if (seconds < 5) return T.justNow;
  return T.ago(duration(seconds < 60 ? Math.round(seconds) : Math.floor(seconds / 60) * 60));
}

/**
 * The time of a log line: of today without its day.
 * @param {number} at_ms
 */
export function clock(at_ms) {
  return new Date(at_ms).toLocaleTimeString(undefined, { hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" });
}

/**
 * Part of a whole in percent.
 * @param {number} part
 * @param {number} whole
 */
export function percent(part, whole) {
  return whole > 0 ? Math.max(0, Math.min(100, Math.round((100 * part) / whole))) : 0;
}
