// Elements from descriptions: what is shown is described anew, and only what differs from before is touched.
//
// A description has a key among its siblings, so an element stays the same one (with its focus and scroll position) while others come
// and go around it.  `memo` skips a part whose inputs are the very same objects as before.

/**
 * @typedef {object} Description
 * @property {string} tag `#text`, `#memo`, or the name of an element
 * @property {string | null} key
 * @property {Props} props
 * @property {Description[]} children
 * @property {string} text of a `#text`
 * @property {(() => Description) | null} make of a `#memo`
 * @property {readonly unknown[]} inputs of a `#memo`
 *
 * @typedef {Description | string | number | false | null | undefined | Child[]} Child
 * @typedef {{[name: string]: any}} Props `key`; `on...` a listener; `born`: called once with the element when it stands in the document,
 *   gives what ends it or nothing; `own`: the same, and what is in it is its own business; `seen`: called with it after each change;
 *   anything else is an attribute, or one of the PROPERTIES
 */

const PROPERTIES = new Set(["value", "checked", "disabled", "open", "hidden", "indeterminate", "selected"]);
const CALLED = new Set(["own", "born", "seen"]);
const SVG = "http://www.w3.org/2000/svg";
const SVG_TAGS = new Set(["svg", "path", "circle", "rect"]);

/** @type {WeakMap<Node, Description>} */
const shownAs = new WeakMap();
/** @type {WeakMap<Node, () => void>} */
const endings = new WeakMap();
/** What is to be told to new elements once they stand in the document. @type {(() => void)[]} */
let births = [];

/**
 * Describe an element.
 * @param {string} tag
 * @param {Props | null} [props]
 * @param {...Child} children
 * @returns {Description}
 */
export function h(tag, props, ...children) {
  const { key = null, ...rest } = props ?? {};
  /** @type {Description[]} */
  const flat = [];
  flatten(children, flat);
  return { tag, key: key === null ? null : String(key), props: rest, children: flat, text: "", make: null, inputs: [] };
}

/**
 * Describe a part that is only made anew when one of its inputs is another than before.
 * @param {string} key
 * @param {readonly unknown[]} inputs compared by identity
 * @param {() => Description} make
 * @returns {Description}
 */
export function memo(key, inputs, make) {
  return { tag: "#memo", key, props: {}, children: [], text: "", make, inputs };
}

/**
 * Make the children of an element what the descriptions say.
 * @param {ParentNode & Node} parent
 * @param {Child[]} children
 */
export function patch(parent, children) {
  /** @type {Description[]} */
  const flat = [];
  flatten(children, flat);
  patchChildren(parent, flat);
  const due = births;
  births = [];
  for (const tell of due) tell();
}

/**
 * @param {Child[]} children
 * @param {Description[]} into
 */
function flatten(children, into) {
  for (const child of children) {
    if (child === null || child === undefined || child === false) continue;
    if (Array.isArray(child)) flatten(child, into);
    else if (typeof child === "object") into.push(child);
    else into.push({ tag: "#text", key: null, props: {}, children: [], text: String(child), make: null, inputs: [] });
  }
}

/**
 * @param {ParentNode & Node} parent
 * @param {Description[]} wanted
 */
function patchChildren(parent, wanted) {
  /** @type {Map<string, ChildNode>} */
  const before = new Map();
  let unkeyed = 0;
  for (const node of parent.childNodes) {
    const shown = shownAs.get(node);
    if (shown) before.set(shown.key ?? `#${unkeyed++}`, node);
  }
  unkeyed = 0;
  /** @type {ChildNode[]} */
  const after = [];
  for (const description of wanted) {
    const name = description.key ?? `#${unkeyed++}`;
    const old = before.get(name);
    const node = update(old, description);
    if (node === old) before.delete(name);
    after.push(node);
  }
  for (const node of before.values()) remove(node); // first, so that those that stay need not be moved
  let place = parent.firstChild;
  for (const node of after) {
    if (node === place) place = place.nextSibling;
    else parent.insertBefore(node, place);
  }
}

/**
 * The node for a description: the old one, changed, where it can be.
 * @param {ChildNode | undefined} old
 * @param {Description} description
 * @returns {ChildNode}
 */
function update(old, description) {
  const before = old && shownAs.get(old);
  if (description.make) {
    const same = before?.make && sameInputs(before.inputs, description.inputs);
    if (old && same) return old;
    return realise(old, before, { ...description.make(), key: description.key, make: description.make, inputs: description.inputs });
  }
  return realise(old, before, description);
}

/**
 * @param {ChildNode | undefined} old
 * @param {Description | undefined} before
 * @param {Description} description
 */
function realise(old, before, description) {
  const fits = old && before && before.tag === description.tag && !before.props.own === !description.props.own;
  if (description.tag === "#text") {
    const node = fits ? old : document.createTextNode("");
    if (node.nodeValue !== description.text) node.nodeValue = description.text;
    shownAs.set(node, description);
    return /** @type {ChildNode} */ (node);
  }
  const element = /** @type {Element} */ (fits ? old : create(description.tag));
  setProps(element, fits ? before.props : {}, description.props);
  shownAs.set(element, description);
  if (!description.props.own) patchChildren(element, description.children);
  description.props.seen?.(element);
  if (fits) return element;
  if (element instanceof HTMLSelectElement && "value" in description.props) element.value = description.props.value; // has its options now
  const begin = description.props.own ?? description.props.born;
  if (begin) births.push(() => (element.isConnected ? keepEnd(element, begin(element)) : undefined));
  return element;
}

/**
 * @param {Element} element
 * @param {unknown} end
 */
function keepEnd(element, end) {
  if (typeof end === "function") endings.set(element, /** @type {() => void} */ (end));
}

/** @param {string} tag */
function create(tag) {
  return SVG_TAGS.has(tag) ? document.createElementNS(SVG, tag) : document.createElement(tag);
}

/**
 * @param {readonly unknown[]} before
 * @param {readonly unknown[]} now
 */
function sameInputs(before, now) {
  return before.length === now.length && before.every((value, place) => Object.is(value, now[place]));
}

/**
 * @param {Element} element
 * @param {Props} before
 * @param {Props} now
 */
function setProps(element, before, now) {
  for (const name of Object.keys(before)) if (!(name in now)) setProp(element, name, undefined);
  for (const [name, value] of Object.entries(now)) {
    if (!CALLED.has(name) && !Object.is(value, before[name])) setProp(element, name, value);
  }
}

/**
 * @param {any} element
 * @param {string} name
 * @param {any} value
 */
function setProp(element, name, value) {
  if (name.startsWith("on")) element[name.toLowerCase()] = value ?? null;
  else if (name === "style")
    element.style.cssText = value ?? ""; // an attribute would be refused by a strict content security policy
  else if (PROPERTIES.has(name) && name in element) element[name] = value ?? (name === "value" ? "" : false);
  else if (value === undefined || value === null || value === false) element.removeAttribute(name);
  else element.setAttribute(name, value === true ? "" : String(value));
}

/** @param {ChildNode} node */
function remove(node) {
  end(node);
  node.remove();
}

/**
 * End what was begun in a part that goes.
 * @param {Node} node
 */
function end(node) {
  endings.get(node)?.();
  endings.delete(node);
  for (const child of node.childNodes) end(child);
}
