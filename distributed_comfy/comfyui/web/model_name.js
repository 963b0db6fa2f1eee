// DistributedModelName shows the text that it handed on, in a field that is not saved.
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
  const field = node.addWidget("text", FIELD, "", () => {}, { serialize: false });
  field.serialize = false;
  field.disabled = true;
  return field;
}
