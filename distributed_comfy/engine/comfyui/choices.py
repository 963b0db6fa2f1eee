"""How node classes declare their inputs, old style (lists of values) and new style (``COMBO`` with options)."""
from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Callable
from typing import Any, TypeVar

from distributed_comfy.engine.catalogue import COMBO, Declaration, declarations, type_names

log = logging.getLogger(__name__)

T = TypeVar("T")

def asked(node_class: Any, question: Callable[[Any], T], otherwise: T) -> T:
    """What a class answers, or ``otherwise``: packs raise anything here, and one broken class must not take all others down."""
    try:
        return question(node_class)
    except Exception as error:  # noqa: BLE001
        log.info("node class %s cannot tell about itself: %r", getattr(node_class, "__name__", node_class), error)
        return otherwise


def input_declarations(node_class: Any) -> dict[str, Declaration]:
    """Required and optional inputs of a class, asked afresh: lists of files may have changed; none for a class that cannot tell."""
    return asked(node_class, _declarations, {})


def _declarations(node_class: Any) -> dict[str, Declaration]:
    return declarations(node_class.INPUT_TYPES())


def is_output_node(node_class: Any) -> bool:
    """Whether ComfyUI runs prompts for its sake."""
    return asked(node_class, lambda cls: getattr(cls, "OUTPUT_NODE", False) is True, False)


def output_types(node_class: Any) -> tuple[str, ...]:
    """Names of the types of its outputs; a list of values counts as ``COMBO``."""
    kinds: tuple[Any, ...] = asked(node_class, lambda cls: tuple(getattr(cls, "RETURN_TYPES", None) or ()), ())
    return type_names(kinds)


def self_validated_inputs(node_class: Any) -> set[str] | None:
    """Inputs that a class checks by itself, so that ComfyUI does not compare them with the list; None: all of them."""
    function = getattr(node_class, "VALIDATE_INPUTS", None)
    if function is None and _overrides_validation(node_class):
        function = node_class.validate_inputs
    if function is None:
        return set()
    signature = inspect.getfullargspec(function)
    return None if signature.varkw is not None else set(signature.args)


def _overrides_validation(node_class: Any) -> bool:
    """True for a new-style class (they all inherit ``validate_inputs``) that has a method of its own."""
    method = getattr(node_class, "validate_inputs", None)
    if method is None or not hasattr(node_class, "define_schema"):
        return False
    return not getattr(method, "__func__", method).__module__.startswith("comfy_api.")


def combos_are_validated(execution: Any, nodes: Any) -> bool:
    """Whether this version refuses a new-style COMBO value that is not among its options (0.3.64 does not); found out by trying."""
    name = "DistributedComfyComboProbe"
    nodes.NODE_CLASS_MAPPINGS[name] = _ComboProbe
    try:
        prompt = {"1": {"class_type": name, "inputs": {"choice": "b"}}}
        accepted = asyncio.run(execution.validate_inputs("", prompt, "1", {}))[0]
    finally:
        del nodes.NODE_CLASS_MAPPINGS[name]
    return not accepted


class _ComboProbe:
    FUNCTION = "run"
    RETURN_TYPES = ()
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"choice": (COMBO, {"options": ["a"]})}}
