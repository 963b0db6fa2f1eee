// DistributedValue shows a field for the default and one for each further item; what is stored stays in its two inputs, in their order.
//
// The fields come after the two inputs and are never saved, so that saved values keep their places.
import { app } from "../../scripts/app.js";
import { read } from "./requests.js";
import { chain } from "./dividers.js";

const DEFAULT = "_dv_default";
const WORKER = "_dv_worker_";
const MOST = 32;

let participants = 1;

/** Give all nodes of its type that behaviour. */
export function showItemValues(nodeType) {
  chain(nodeType.prototype, "onNodeCreated", function () {
    for (const name of ["default_value", "worker_values"]) hide(this, name);
    build(this);
    countParticipants().then(() => build(this));
  });
  chain(nodeType.prototype, "onConfigure", function () {
    build(this);
  });
  chain(nodeType.prototype, "onConnectionsChange", function () {
    queueMicrotask(() => this.graph && build(this));
  });
}

async function countParticipants() {
  try {
    const { cluster } = await read("/distributed_comfy/workers");
    participants = Math.min(Math.max(cluster.filter((worker) => !worker.guest).length, 1), MOST);
  } catch {
    // no cluster yet: a field for one more, and for those that have a value
  }
}

/** Out of sight, and without a row of its own; an input that somebody has linked stays linked. */
function hide(node, name) {
  const widget = stored(node, name);
  widget.hidden = true;
  widget.computeSize = () => [0, -4];
}

function stored(node, name) {
  return node.widgets.find((widget) => widget.name === name);
}

function valuesOf(node) {
  try {
    const found = JSON.parse(stored(node, "worker_values").value || "{}");
    return found && typeof found === "object" && !Array.isArray(found) ? found : {};
  } catch {
    return {};
  }
}

/** What the connected inputs take: type and, for a list, its choices. */
function target(node) {
  for (const id of node.outputs?.[0]?.links ?? []) {
    const link = node.graph?.links?.get?.(id) ?? node.graph?.links?.[id];
    const other = link && node.graph.getNodeById(link.target_id);
    const input = other?.inputs?.[link.target_slot];
    const widget = other?.widgets?.find((each) => each.name === (input?.widget?.name ?? input?.name));
    if (widget?.type === "combo") {
      const choices = typeof widget.options.values === "function" ? widget.options.values(widget, other) : widget.options.values;
      return { type: "COMBO", choices };
    }
    if (["INT", "FLOAT", "STRING"].includes(input?.type)) return { type: input.type };
  }
  return null;
}

function build(node) {
  if (!stored(node, "worker_values")) return;
  const values = valuesOf(node);
  const kind = target(node);
  const highest = Math.max(0, ...Object.keys(values).filter((key) => /^[1-9]\d{0,3}$/.test(key)).map(Number));
  const count = Math.min(Math.max(participants, highest), MOST);
  node.widgets = node.widgets.filter((widget) => !widget.name.startsWith("_dv_"));
  field(node, DEFAULT, "default", kind, stored(node, "default_value").value, (value) => {
    stored(node, "default_value").value = String(value);
  });
  for (let number = 1; number <= count; number++) {
    field(node, `${WORKER}${number}`, `worker ${number}`, kind, values[number] ?? "", (value) => store(node, number, value, kind));
  }
  node.setSize([node.size[0], node.computeSize()[1]]);
  app.canvas?.setDirty(true, true);
}

function field(node, name, label, kind, value, changed) {
  const choices = kind?.type === "COMBO" ? ["", ...kind.choices.filter((choice) => choice !== "")] : null;
  const widget = choices
    ? node.addWidget("combo", name, value, changed, { values: choices, serialize: false })
    : node.addWidget("text", name, String(value), changed, { serialize: false });
  widget.label = label;
  widget.serialize = false;
}

function store(node, number, value, kind) {
  const values = valuesOf(node);
  if (value === "" || value === null || value === undefined) delete values[number];
  else values[number] = value;
  if (kind) values._type = kind.type;
  stored(node, "worker_values").value = JSON.stringify(values);
}
