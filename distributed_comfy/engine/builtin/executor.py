"""Runs the nodes of a checked prompt in order, list by list as ComfyUI does, and keeps outputs that the next item can use."""
from __future__ import annotations

import gc
import traceback
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

from distributed_comfy.engine.builtin.declarations import declared_inputs, is_link, is_output
from distributed_comfy.engine.builtin.workbench import Workbench
from distributed_comfy.errors import DistributedComfyError, NodeFailed, OutOfMemory
from distributed_comfy.messages import Prompt, RunRequest, content_hash
from distributed_comfy.workflow.classes import CLAIM_INPUT

Outputs = list[list[Any]]
"""For each output slot of a node the list of its values; a plain node's list has one element."""

_MEMORY_MESSAGES = ("not enough memory", "can't allocate memory", "out of memory")


@dataclass
class _Run:
    """What one run knows so far."""

    prompt: Prompt
    request: RunRequest
    signatures: dict[str, str] = field(default_factory=dict)
    """node id -> what its outputs depend on; none for a node that must run afresh each time."""
    outputs: dict[str, Outputs] = field(default_factory=dict)
    ui: dict[str, Any] = field(default_factory=dict)


class Executor:
    """Executes prompts, one after the other, with one cache of node outputs.

    Args:
        classes: of all nodes, by name.
        bench: what they have in common.
        alive: called before each node, which may be silent for as long as a stall lasts, such as one that loads a model.
    """

    def __init__(self, classes: Mapping[str, Any], bench: Workbench, alive: Callable[[], None]) -> None:
        self._classes = classes
        self._bench = bench
        self._alive = alive
        self._cache: dict[str, Outputs] = {}

    def run(self, prompt: Prompt, order: list[str], request: RunRequest) -> dict[str, Any]:
        """Execute nodes in this order.

        Args:
            prompt: checked by `validation.check_prompt`.
            order: as it gave.
            request: for the hidden inputs.
        Returns:
            node id -> ui dict, lists of all calls joined.
        Raises:
            NodeFailed, OutOfMemory, ItemInterrupted, or what a node of the cluster raised.
        """
        run = _Run(prompt, request)
        try:
            for node_id in order:
                self._bench.check()
                self._alive()
                self._execute(run, node_id)
        finally:
            # As ComfyUI: what this prompt did not use is not kept for the next.
            self._cache = {signature: run.outputs[node_id] for node_id, signature in run.signatures.items() if node_id in run.outputs}
        return run.ui

    def clear(self) -> None:
        """Forget all outputs and give their memory back."""
        self._cache.clear()
        gc.collect()
        if self._bench.device == "cuda":
            import torch

            torch.cuda.empty_cache()

    def _execute(self, run: _Run, node_id: str) -> None:
        signature = self._signature(run, node_id)
        if signature is not None:
            run.signatures[node_id] = signature
            if signature in self._cache:
                run.outputs[node_id] = self._cache[signature]
                return
        node_class = self._classes[run.prompt[node_id]["class_type"]]
        inputs = self._inputs(run, node_id)
        if not getattr(node_class, "INPUT_IS_LIST", False) and not all(inputs.values()):
            # Nothing came (a collector of which every item was blocked), so nothing goes on either, as behind ComfyUI's blocker.
            run.outputs[node_id] = [[] for _ in node_class.RETURN_TYPES]
            return
        self._bench.node_id = node_id
        try:
            results = _call(node_class(), inputs)
        except DistributedComfyError:  # an interrupt, or a source whose blob is gone: not the node's fault
            raise
        except Exception as error:  # noqa: BLE001 - whatever a node raises is the user's; it is raised again by its name
            self._fail(run, node_id, error)
        run.outputs[node_id] = _merged(node_class, results)
        if ui := _merged_ui(results):
            run.ui[node_id] = ui

    def _signature(self, run: _Run, node_id: str) -> str | None:
        """Equal for nodes with equal outputs; None for output nodes, for sinks and sources, and for all that depends on them."""
        node = run.prompt[node_id]
        node_class = self._classes[node["class_type"]]
        if is_output(node_class) or CLAIM_INPUT in node["inputs"]:
            return None
        inputs: dict[str, Any] = {}
        for name, value in node["inputs"].items():
            if is_link(value):
                if str(value[0]) not in run.signatures:
                    return None
                value = {"link": [run.signatures[str(value[0])], value[1]]}
            inputs[name] = value
        return content_hash({"class": node["class_type"], "inputs": inputs, "changed": _change_mark(node_class, node["inputs"])})

    def _inputs(self, run: _Run, node_id: str) -> dict[str, list[Any]]:
        """Each declared input as the list that the graph delivers."""
        node = run.prompt[node_id]
        hidden = {
            "PROMPT": run.request.original_prompt,
            "EXTRA_PNGINFO": run.request.extra_pnginfo,
            "UNIQUE_ID": node_id,
        }
        values: dict[str, list[Any]] = {}
        for declared in declared_inputs(self._classes[node["class_type"]]).values():
            if declared.category == "hidden" and isinstance(declared.kind, str) and declared.kind in hidden:
                values[declared.name] = [hidden[declared.kind]]
            elif declared.name in node["inputs"]:
                value = node["inputs"][declared.name]
                values[declared.name] = run.outputs[str(value[0])][value[1]] if is_link(value) else [value]
        return values

    def _fail(self, run: _Run, node_id: str, error: Exception) -> NoReturn:
        class_type = run.prompt[node_id]["class_type"]
        lines = traceback.format_tb(error.__traceback__)
        if _is_out_of_memory(error):
            traceback.clear_frames(error.__traceback__)  # the frames hold the tensors that took the memory
            run.outputs.clear()
            self.clear()
            raise OutOfMemory(device=self._bench.device, node_id=node_id, exception_message=str(error), class_type=class_type) from error
        raise NodeFailed(
            node_id=node_id,
            class_type=class_type,
            exception_type=_full_name(type(error)),
            exception_message=str(error),
            traceback=lines,
        ) from error


def _call(node: Any, inputs: dict[str, list[Any]]) -> list[Any]:
    """What the node returned, call by call: once for each position of the longest list, shorter lists repeat their last value."""
    function = getattr(node, node.FUNCTION)
    if getattr(node, "INPUT_IS_LIST", False):
        return [function(**inputs)]
    calls = max((len(values) for values in inputs.values()), default=1)
    return [function(**{name: values[min(call, len(values) - 1)] for name, values in inputs.items()}) for call in range(calls)]


def _merged(node_class: Any, results: list[Any]) -> Outputs:
    """The outputs of all calls, slot by slot; a slot that is a list itself (OUTPUT_IS_LIST) is joined."""
    tuples = [result.get("result", ()) if isinstance(result, dict) else result for result in results]
    is_list = getattr(node_class, "OUTPUT_IS_LIST", (False,) * len(node_class.RETURN_TYPES))
    return [
        [value for outputs in tuples if slot < len(outputs) for value in (outputs[slot] if joined else [outputs[slot]])]
        for slot, joined in enumerate(is_list)
    ]


def _merged_ui(results: list[Any]) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    for result in results:
        for key, entries in (result.get("ui") or {}).items() if isinstance(result, dict) else ():
            merged.setdefault(key, []).extend(entries)
    return merged


def _change_mark(node_class: Any, inputs: dict[str, Any]) -> Any:
    """What the class says about the world outside (``IS_CHANGED``); NaN, unequal even to itself, means always changed."""
    ask = getattr(node_class, "IS_CHANGED", None)
    if ask is None:
        return None
    known = {name: value for name, value in inputs.items() if name in declared_inputs(node_class) and not is_link(value)}
    mark = ask(**known)
    return uuid.uuid4().hex if mark != mark else str(mark)


def _is_out_of_memory(error: Exception) -> bool:
    import torch

    device_error = getattr(torch, "OutOfMemoryError", torch.cuda.OutOfMemoryError)
    if isinstance(error, (MemoryError, device_error)):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error).lower() for text in _MEMORY_MESSAGES)


def _full_name(kind: type) -> str:
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
