"""What ComfyUI's validation says about a prompt: this worker lacks something, or the prompt is wrong everywhere.

ComfyUI gives the same records in its own process and as the answer to ``POST /prompt``.
"""
from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from distributed_comfy.errors import ValidationRefused, WorkerLacks
from distributed_comfy.messages import Prompt

NOT_IN_LIST = "value_not_in_list"
"""ComfyUI's error type for a model file (or any list value) that is not there."""


def refusal_of(error: Any, node_errors: Mapping[str, Any], prompt: Prompt, missing: Iterable[str]) -> ValidationRefused:
    """A refusal with ComfyUI's words and its node errors.

    Args:
        error: what it has against the prompt as a whole; None for nothing.
        node_errors: what it has against nodes.
        prompt: as it was given.
        missing: targets that it would not run.
    """
    shown = plain(node_errors)
    lines = [f"{error['message']}: {error['details']}"] if error and not shown else []
    lines += [f"node {node} ({entry['class_type']}): {_sentence(reason)}" for node, entry in shown.items() for reason in entry["errors"]]
    if not lines:
        lines = [f"node {node} ({prompt[node]['class_type']}) is no output node" for node in missing]
    return ValidationRefused(details="; ".join(lines), error=plain(error), node_errors=shown)


def lacking(refusal: ValidationRefused) -> list[str]:
    """What the worker would need; empty if another worker would refuse the prompt too."""
    found = []
    for node_id, entry in refusal.node_errors.items():
        for reason in entry["errors"]:
            if reason["type"] != NOT_IN_LIST:
                return []
            extra = reason.get("extra_info") or {}
            found.append(f"{entry['class_type']}.{extra.get('input_name')} {extra.get('received_value')!r} (node {node_id})")
    return found


def require_classes(known: Iterable[str], prompt: Prompt, worker: str) -> None:
    """
    Raises:
        WorkerLacks: the prompt has nodes of classes that are not among ``known``.
    """
    unknown = sorted({node["class_type"] for node in prompt.values()} - set(known))
    if unknown:
        raise WorkerLacks(worker=worker, lacks=", ".join(f"node class {name}" for name in unknown))


def plain(value: Any) -> Any:
    """``value`` as JSON would hold it; node errors quote whole input declarations, which may hold any object."""
    return json.loads(json.dumps(value, default=str))


def _sentence(reason: dict[str, Any]) -> str:
    return f"{reason['message']}: {reason['details']}" if reason["details"] else str(reason["message"])
