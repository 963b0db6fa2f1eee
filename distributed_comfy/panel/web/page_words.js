// What is wrong and what to do, as the server says it for any reader, in the words of this page's buttons and fields.
import { h } from "./dom.js";
import { PAGE_WORDS } from "./texts.js";

/** @param {string} text */
export function inPageWords(text) {
  return PAGE_WORDS.reduce((said, [words, instead]) => said.replace(words, /** @type {any} */ (instead)), text);
}

/**
 * What to do, as a paragraph; nothing where there is nothing.
 * @param {string | null | undefined} remedy
 */
export function remedyLine(remedy) {
  return remedy ? h("p", { key: "remedy", class: "remedy" }, inPageWords(remedy)) : null;
}
