// DistributedModelName shows the text that it handed on, in a field that nobody can edit and that is not saved.
import { app } from "../../scripts/app.js";
import { ComfyWidgets } from "../../scripts/widgets.js";
import { chain } from "./dividers.js";

const FIELD = "shown";

/** Give all nodes of its type that behaviour. */
export function showModelName(nodeType) {
  chain(nodeType.prototype, "onExecuted", function (message) {
    const texts = message?.text;
    if (!Array.isArray(texts)) return;
    const field = this.widgets?.find((each) => each.name === FIELD) ?? addField(this);
    field.value = texts.join("\n");
    this.setDirtyCanvas?.(true, true);
  });
}

function addField(node) {
  const field = ComfyWidgets.STRING(node, FIELD, ["STRING", { multiline: true }], app).widget; // a disabled field would show no text
  field.inputEl.readOnly = true;
  field.serialize = false;
  field.options.serialize = false;
  const least = node.computeSize();
  node.setSize([Math.max(node.size[0], least[0]), Math.max(node.size[1], least[1])]);
  return field;
}
