// What is wrong and what to do, as the server says it for any reader, in the words of this page's buttons and fields.
import { h } from "./dom.js";
import { EDIT_WORDS, PAGE_WORDS } from "./texts.js";

/**
 * @param {string} text
 * @param {boolean} [editable] whether the worker that it is about has settings here: one that was started by hand has none
 */
export function inPageWords(text, editable = true) {
  const all = editable ? [...EDIT_WORDS, ...PAGE_WORDS] : PAGE_WORDS;
  return all.reduce((said, [words, instead]) => said.replace(words, /** @type {any} */ (instead)), text);
}

/**
 * What to do, as a paragraph; nothing where there is nothing.
 * @param {string | null | undefined} remedy
 * @param {boolean} [editable] see `inPageWords`
 */
export function remedyLine(remedy, editable) {
  return remedy ? h("p", { key: "remedy", class: "remedy" }, inPageWords(remedy, editable)) : null;
}
