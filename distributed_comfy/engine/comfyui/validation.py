"""ComfyUI's own validation of a prompt, and what a refusal means: this worker lacks something, or the prompt is wrong everywhere."""
from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

from distributed_comfy.engine.comfyui.choices import input_declarations, listed_choices, normalised
from distributed_comfy.engine.comfyui.tree import ComfyTree
from distributed_comfy.errors import ValidationRefused, WorkerLacks
from distributed_comfy.messages import Prompt

NOT_IN_LIST = "value_not_in_list"
"""ComfyUI's error type for a model file (or any list value) that is not there."""


def check_prompt(tree: ComfyTree, prompt: Prompt, targets: tuple[str, ...], worker: str) -> None:
    """Refuse a prompt unless every target can run; values that ComfyUI converts are converted in place.

    ComfyUI calls a prompt valid when one of its outputs is, and drops the others; here all targets must be.

    Args:
        prompt: changed in place (numbers converted, path separators as on this system).
        worker: name of this worker, for the message.
    Raises:
        WorkerLacks: node classes or list values that are not on this worker, and nothing else.
        ValidationRefused: anything that is wrong on every worker.
    """
    _require_classes(tree, prompt, worker)
    spell_choices(tree, prompt)
    refusal = _refusal(tree, prompt, targets)
    if refusal is not None:  # perhaps only by what ComfyUI remembers of its folders
        tree.forget_listings()
        spell_choices(tree, prompt)
        refusal = _refusal(tree, prompt, targets)
    if refusal is None:
        return
    if lacking := _lacking(refusal):
        raise WorkerLacks(worker=worker, lacks=", ".join(lacking))
    raise refusal


def _require_classes(tree: ComfyTree, prompt: Prompt, worker: str) -> None:
    unknown = sorted({node["class_type"] for node in prompt.values()} - set(tree.nodes.NODE_CLASS_MAPPINGS))
    if unknown:
        raise WorkerLacks(worker=worker, lacks=", ".join(f"node class {name}" for name in unknown))


def _refusal(tree: ComfyTree, prompt: Prompt, targets: tuple[str, ...]) -> ValidationRefused | None:
    """What ComfyUI has against the targets, its words and its node errors."""
    answer = asyncio.run(tree.execution.validate_prompt("", prompt, list(targets)))
    _, error, good, node_errors = answer[:4]
    if set(targets) <= set(good):
        return None
    shown = _plain(node_errors)
    lines = [f"{error['message']}: {error['details']}"] if error and not shown else []
    lines += [f"node {node} ({entry['class_type']}): {_sentence(reason)}" for node, entry in shown.items() for reason in entry["errors"]]
    if not lines:
        lines = [f"node {node} ({prompt[node]['class_type']}) is no output node" for node in targets if node not in good]
    return ValidationRefused(details="; ".join(lines), error=_plain(error), node_errors=shown)


def _sentence(reason: dict[str, Any]) -> str:
    return f"{reason['message']}: {reason['details']}" if reason["details"] else str(reason["message"])


def _lacking(refusal: ValidationRefused) -> list[str]:
    """What the worker would need; empty if another worker would refuse the prompt too."""
    found = []
    for node_id, entry in refusal.node_errors.items():
        for reason in entry["errors"]:
            if reason["type"] != NOT_IN_LIST:
                return []
            extra = reason.get("extra_info") or {}
            found.append(f"{entry['class_type']}.{extra.get('input_name')} {extra.get('received_value')!r} (node {node_id})")
    return found


def _plain(value: Any) -> Any:
    """``value`` as JSON would hold it; node errors quote whole input declarations, which may hold any object."""
    return json.loads(json.dumps(value, default=str))


def spell_choices(tree: ComfyTree, prompt: Prompt) -> None:
    """Write model names as this system lists them: ``sub/a.safetensors`` is ``sub\\a.safetensors`` on Windows."""
    for node, name, value in _path_literals(prompt):
        declared = input_declarations(tree.nodes.NODE_CLASS_MAPPINGS[node["class_type"]]).get(name)
        options = listed_choices(declared) if declared is not None else None
        if options is not None and value not in options:
            spellings = {normalised(option): option for option in options if isinstance(option, str)}
            node["inputs"][name] = spellings.get(normalised(value), value)


def _path_literals(prompt: Prompt) -> Iterator[tuple[dict[str, Any], str, str]]:
    for node in prompt.values():
        for name, value in node["inputs"].items():
            if isinstance(value, str) and ("/" in value or "\\" in value) and "\n" not in value:
                yield node, name, value
