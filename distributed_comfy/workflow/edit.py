"""``--set NODE.INPUT=VALUE``: one literal of a prompt replaced before it is planned."""
from __future__ import annotations

import json
from collections.abc import Callable, Collection
from typing import Any, NoReturn

from distributed_comfy.config_file import nearest
from distributed_comfy.errors import InputUnknown
from distributed_comfy.messages import Prompt
from distributed_comfy.workflow.graph import as_link

ADDED = "+"
"""Before the name of an input: it may be one that the file does not have."""

Declared = Callable[[str], Collection[str] | None]


def _unknown(class_type: str) -> None:
    """No class is known."""


def set_input(prompt: Prompt, assignment: str, declared: Declared = _unknown) -> Prompt:
    """A copy of ``prompt`` with one input set; a link there is replaced by the literal.

    NODE ends at the first dot, INPUT at the first ``=`` after it, and VALUE is everything else, so paths and dotted input names
    survive. NODE is an id, or the class or title (``_meta.title``) of exactly one node. VALUE is read as JSON, except where the
    present literal is a string or it is not JSON; then it is a string.

    A file leaves out optional inputs that are not used: one that the class is known to have is added, any other with ``NODE.+INPUT``.

    Args:
        prompt: to be changed.
        assignment: see above.
        declared: class -> its inputs; None where they are not known.
    Raises:
        InputUnknown: not of that form, no such node or input, several nodes of that name, or a value the input cannot take.
    """
    target, equals, text = assignment.partition("=")
    name, dot, key = target.partition(".")
    if not (equals and dot and name and key):
        raise InputUnknown(target=assignment, reason="write it as NODE.INPUT=VALUE, for example 3.steps=20")
    node_id = _find_node(prompt, name, target)
    inputs = prompt[node_id]["inputs"]
    names = declared(prompt[node_id]["class_type"]) or ()
    if key.startswith(ADDED) and key not in inputs:
        key = key.removeprefix(ADDED)
    elif key not in inputs and key not in names:
        raise InputUnknown(target=target, reason=_no_such_input(node_id, key, [*inputs, *names], list(inputs)))
    value = _parse_value(text, inputs.get(key), target)
    return {**prompt, node_id: {**prompt[node_id], "inputs": {**inputs, key: value}}}


def _no_such_input(node_id: str, key: str, names: list[str], here: list[str]) -> str:
    near = nearest(key, names)
    meant = f"did you mean {near}?" if near else f"{node_id}.{ADDED}{key}=VALUE adds one that the file leaves out"
    return f"node {node_id} has no input {key!r} in this file; it has {', '.join(here) or 'none'}; {meant}"


def _find_node(prompt: Prompt, name: str, target: str) -> str:
    if name in prompt:
        return name
    by_class = [node_id for node_id, node in prompt.items() if node["class_type"] == name]
    by_title = [node_id for node_id, node in prompt.items() if _title(node) == name]
    for found in (by_class, by_title):
        if len(found) == 1:
            return found[0]
    if by_class or by_title:
        several = dict.fromkeys(by_class + by_title)
        raise InputUnknown(target=target, reason=f"{name!r} is not one node; give one of the ids {', '.join(several)}")
    listed = ", ".join(f"{node_id} ({_title(node) or node['class_type']})" for node_id, node in prompt.items())
    raise InputUnknown(target=target, reason=f"no node has the id, class or title {name!r}; the prompt has {listed}")


def _title(node: dict[str, Any]) -> str:
    meta = node.get("_meta")
    return str(meta.get("title", "")) if isinstance(meta, dict) else ""


def _parse_value(text: str, current: Any, target: str) -> Any:
    if isinstance(current, str):
        return text
    if isinstance(current, bool):
        return _parse_flag(text, target)
    try:
        value = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        return text
    if as_link(value):
        raise InputUnknown(target=target, reason=f"{text} is a link; only values can be set")
    return {"__value__": value} if isinstance(value, list) else value


def _parse_flag(text: str, target: str) -> bool:
    """ComfyUI takes any text that is not empty for true, ``False`` too, so only the two words pass."""
    if text.lower() not in ("true", "false"):
        raise InputUnknown(target=target, reason=f"this input is a switch and takes true or false, not {text!r}")
    return text.lower() == "true"


def _no_constant(constant: str) -> NoReturn:
    raise ValueError(constant)
