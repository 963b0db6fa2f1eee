// Files of before: what a saved node has that has no place any more is left out before its values are given to widgets by position.

const UPSCALE_VALUES = 13;

/** Old files of the upscale have one more value, true or false, which meant nothing; here it would fall to the first input of ours. */
export function readOldUpscales(nodeType) {
  const configure = nodeType.prototype.configure;
  nodeType.prototype.configure = function (saved) {
    const values = saved?.widgets_values;
    const old = Array.isArray(values) && values.length === UPSCALE_VALUES + 1 && typeof values[UPSCALE_VALUES] === "boolean";
    return configure.call(this, old ? { ...saved, widgets_values: values.slice(0, UPSCALE_VALUES) } : saved);
  };
}
