"""Checks a prompt before anything runs, with the error types of ComfyUI's own validation."""
from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from distributed_comfy.engine.builtin.declarations import InputDeclaration, declared_inputs, is_link, self_validated
from distributed_comfy.errors import ValidationRefused, WorkerLacks
from distributed_comfy.messages import Prompt

NOT_IN_LIST = "value_not_in_list"
"""The one reason that may not hold elsewhere: another worker can offer more values.  Input files come along with an item."""

Reason = dict[str, Any]
"""``{"type", "message", "details", "extra_info"}``, as in ComfyUI's ``node_errors``."""

_CONVERSIONS = {"INT": int, "FLOAT": float, "STRING": str, "BOOLEAN": bool}


def check_prompt(prompt: Prompt, targets: tuple[str, ...], classes: Mapping[str, Any], *, worker: str) -> list[str]:
    """Check all that the targets need.

    Args:
        prompt: literals of number and text inputs are converted in place, as ComfyUI does.
        targets: output nodes to run.
        classes: class_type -> class.
        worker: name of this worker, for the message.
    Returns:
        The nodes that the targets need, each after all that it needs itself.
    Raises:
        WorkerLacks: a node class or list value is not known here, and nothing else is wrong.
        ValidationRefused: fields ``details`` and ``node_errors`` (as in ComfyUI's answer).
    """
    unknown = sorted({node["class_type"] for node in prompt.values()} - set(classes))
    if unknown:
        raise WorkerLacks(worker=worker, lacks=", ".join(f"node class {name}" for name in unknown))
    order = execution_order(prompt, targets)
    reasons = {node_id: list(_node_reasons(prompt, node_id, classes)) for node_id in order}
    reasons = {node_id: found for node_id, found in reasons.items() if found}
    if not reasons:
        return order
    lines = [f"node {node_id} ({prompt[node_id]['class_type']}): {_sentence(reason)}" for node_id in reasons for reason in reasons[node_id]]
    if all(reason["type"] == NOT_IN_LIST for node_id in reasons for reason in reasons[node_id]):
        raise WorkerLacks(worker=worker, lacks="; ".join(lines))
    raise ValidationRefused(details="; ".join(lines), node_errors=_node_errors(prompt, targets, reasons))


def execution_order(prompt: Prompt, targets: tuple[str, ...]) -> list[str]:
    """The nodes that the targets need, each after all that it needs itself; targets in their order.

    Raises:
        ValidationRefused: a link leads to a node that is not there, or round in a circle.
    """
    order: dict[str, None] = {}
    for target in targets:
        _visit(prompt, target, order)
    return list(order)


def _visit(prompt: Prompt, target: str, order: dict[str, None]) -> None:
    """Depth first without recursion, because chains can be longer than Python's stack."""
    path: dict[str, Iterator[str]] = {target: _sources(prompt, target)}
    while path:
        node_id = next(reversed(path))
        source = next((source for source in path[node_id] if source not in order), None)
        if source is None:
            order[node_id] = None
            del path[node_id]
        elif source in path:
            raise ValidationRefused(details=f"nodes {sorted(path)} feed each other", node_errors={})
        else:
            path[source] = _sources(prompt, source)


def _sources(prompt: Prompt, node_id: str) -> Iterator[str]:
    if node_id not in prompt:
        raise ValidationRefused(details=f"a link or target names node {node_id}, which is not in the prompt", node_errors={})
    return iter([str(value[0]) for value in prompt[node_id]["inputs"].values() if is_link(value) and value])


# -- one node -----------------------------------------------------------------------------------------------------------
def _node_reasons(prompt: Prompt, node_id: str, classes: Mapping[str, Any]) -> Iterator[Reason]:
    inputs = prompt[node_id]["inputs"]
    node_class = classes[prompt[node_id]["class_type"]]
    own = self_validated(node_class)
    for declared in declared_inputs(node_class).values():
        if declared.name not in inputs:
            if declared.category == "required":
                yield _reason("required_input_missing", "Required input is missing", declared.name, declared)
        elif declared.category != "hidden":
            yield from _input_reasons(prompt, inputs, declared, classes, own)
    yield from _own_reasons(node_class, inputs, own)


def _input_reasons(
    prompt: Prompt, inputs: dict[str, Any], declared: InputDeclaration, classes: Mapping[str, Any], own: frozenset[str]
) -> Iterator[Reason]:
    value = inputs[declared.name]
    if is_link(value):
        yield from _link_reasons(prompt, value, declared, classes)
        return
    convert = _CONVERSIONS.get(declared.kind) if isinstance(declared.kind, str) else None
    if convert is not None:
        try:
            inputs[declared.name] = value = convert(value)
        except (ValueError, TypeError, OverflowError) as error:
            message = f"Failed to convert an input value to a {declared.kind} value"
            yield _reason("invalid_input_type", message, f"{declared.name}, {value}, {error}", declared, value)
            return
    if declared.name not in own:
        yield from _value_reasons(value, declared)


def _link_reasons(prompt: Prompt, link: list[Any], declared: InputDeclaration, classes: Mapping[str, Any]) -> Iterator[Reason]:
    if len(link) != 2 or not isinstance(link[1], int):
        message = "Bad linked input, must be a length-2 list of [node_id, slot_index]"
        yield _reason("bad_linked_input", message, declared.name, declared, link)
        return
    types = classes[prompt[str(link[0])]["class_type"]].RETURN_TYPES
    if not 0 <= link[1] < len(types):
        yield _reason("bad_linked_input", f"Bad linked input, the node has {len(types)} outputs", declared.name, declared, link)
    elif not _types_meet(types[link[1]], declared.kind):
        details = f"{declared.name}, received_type({types[link[1]]}) mismatch input_type({declared.kind})"
        yield _reason("return_type_mismatch", "Return type mismatch between linked nodes", details, declared, link)


def _types_meet(received: Any, wanted: Any) -> bool:
    """One type in common; both may be lists like ``IMAGE,MASK``, and a class that is never unequal links with everything."""
    if not received != wanted:  # noqa: SIM202 - "never unequal" is what such a class defines, not "equal"
        return True
    if not isinstance(received, str) or not isinstance(wanted, str):
        return False
    return bool({name.strip() for name in received.split(",")} & {name.strip() for name in wanted.split(",")})


def _value_reasons(value: Any, declared: InputDeclaration) -> Iterator[Reason]:
    low, high = declared.options.get("min"), declared.options.get("max")
    if low is not None and value < low:
        yield _reason("value_smaller_than_min", f"Value {value} smaller than min of {low}", declared.name, declared, value)
    elif high is not None and value > high:
        yield _reason("value_bigger_than_max", f"Value {value} bigger than max of {high}", declared.name, declared, value)
    elif declared.choices is not None and value not in declared.choices:
        offered = declared.choices if len(declared.choices) <= 20 else f"(list of length {len(declared.choices)})"
        yield _reason(NOT_IN_LIST, "Value not in list", f"{declared.name}: '{value}' not in {offered}", declared, value)


def _own_reasons(node_class: Any, inputs: dict[str, Any], own: frozenset[str]) -> Iterator[Reason]:
    """What the class itself says about its literals."""
    given = {name: inputs[name] for name in own if name in inputs and not is_link(inputs[name])}
    verdict = node_class.VALIDATE_INPUTS(**given) if given else True
    if verdict is not True:
        name = next(iter(given))
        details = name if verdict is False else f"{name} - {verdict}"
        yield {
            "type": "custom_validation_failed",
            "message": "Custom validation failed for node",
            "details": details,
            "extra_info": {"input_name": name},
        }


# -- what a refusal means -----------------------------------------------------------------------------------------------
def _reason(kind: str, message: str, details: str, declared: InputDeclaration, *received: Any) -> Reason:
    extra: dict[str, Any] = {"input_name": declared.name}
    if received:
        extra["received_value"] = received[0]
    return {"type": kind, "message": message, "details": details, "extra_info": extra}


def _sentence(reason: Reason) -> str:
    return f"{reason['message']}: {reason['details']}"


def _node_errors(prompt: Prompt, targets: tuple[str, ...], reasons: dict[str, list[Reason]]) -> dict[str, Any]:
    needs = {target: set(execution_order(prompt, (target,))) for target in targets}
    return {
        node_id: {
            "errors": found,
            "dependent_outputs": [target for target in targets if node_id in needs[target]],
            "class_type": prompt[node_id]["class_type"],
        }
        for node_id, found in reasons.items()
    }
