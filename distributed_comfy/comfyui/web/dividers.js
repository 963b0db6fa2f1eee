// A divider shows as many outputs as it makes parts, and those beyond that are still connected.

/** Give all nodes of a divider's type that behaviour. */
export function showDividerOutputs(nodeType, nodeData) {
  const names = nodeData.output_name;
  const types = nodeData.output;

  const sync = (node) => {
    const wanted = Math.max(partsOf(node, names.length), lastConnected(node) + 1);
    if (node.outputs.length === wanted) return;
    while (node.outputs.length > wanted) node.removeOutput(node.outputs.length - 1);
    while (node.outputs.length < wanted) node.addOutput(names[node.outputs.length], types[node.outputs.length]);
    node.setSize([node.size[0], node.computeSize()[1]]);
    node.setDirtyCanvas?.(true, true);
  };

  chain(nodeType.prototype, "onNodeCreated", function () {
    const widget = this.widgets?.find((each) => each.name === "divide_by");
    if (widget) chain(widget, "callback", () => sync(this));
    sync(this);
  });
  chain(nodeType.prototype, "onConfigure", function () {
    sync(this);
  });
  chain(nodeType.prototype, "onConnectionsChange", function () {
    if (this.graph && !this.graph._configuring) queueMicrotask(() => this.graph && sync(this));
  });
}

function partsOf(node, most) {
  const parts = Math.trunc(Number(node.widgets?.find((each) => each.name === "divide_by")?.value));
  return Number.isFinite(parts) ? Math.min(Math.max(parts, 1), most) : most;
}

function lastConnected(node) {
  return node.outputs.findLastIndex((output) => output.links?.length > 0);
}

/** Call something after what is there already. */
export function chain(object, name, then) {
  const before = object[name];
  object[name] = function (...given) {
    const result = before?.apply(this, given);
    then.apply(this, given);
    return result;
  };
}
