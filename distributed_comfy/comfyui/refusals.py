"""Adds to ComfyUI's refusal of a prompt what it cannot know: that no worker has what is missing either, and what is near there."""
from __future__ import annotations

import json
import logging
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from distributed_comfy.config_file import nearest
from distributed_comfy.messages import Capability, Prompt
from distributed_comfy.planning.requirements import normalise, offers

log = logging.getLogger(__name__)

_SHOWN_WORKERS = 6
_NOT_LISTED = "value_not_in_list"
_NO_CLASS = ("invalid_prompt", "missing_node_type")
"""ComfyUI's types for a prompt with an unknown node class, by version."""


@dataclass(frozen=True)
class Asked:
    """What the workers said when a prompt came that needs what is not here."""

    prompt: Prompt = field(default_factory=dict)
    missing: Mapping[str, list[str]] = field(default_factory=dict)
    """See `foreign.ForeignValues.missing`; empty: they were not asked."""
    live: Mapping[str, Capability] = field(default_factory=dict)
    """Worker -> its capability."""
    unanswered: str = ""
    """Why nobody knows what they have."""


def with_the_workers(answer: web.StreamResponse, asked: Asked) -> web.StreamResponse:
    """ComfyUI's answer to a prompt; a refusal for what no worker has either says so beside its own words.  Types and fields stay."""
    if not asked.missing or answer.status != web.HTTPBadRequest.status_code or not isinstance(answer, web.Response):
        return answer
    try:
        refusal = json.loads(bytes(answer.body))  # type: ignore[arg-type]  # ComfyUI gives text
    except ValueError:
        return answer
    said = [*_values(refusal, asked), *_class(refusal, asked)]
    if not said:
        return answer
    for sentence in dict.fromkeys(said):
        log.warning("a prompt is refused: %s", sentence)
    headers = {name: value for name, value in answer.headers.items() if name not in ("Content-Length", "Content-Type")}
    return web.json_response(refusal, status=answer.status, headers=headers)


def _values(refusal: Any, asked: Asked) -> Iterable[str]:
    """Complete the errors about values; gives what the log is told."""
    refused = _object(_object(refusal).get("node_errors"))
    for node_id, inputs in asked.missing.items():
        node = asked.prompt[node_id]
        for error in map(_object, _object(refused.get(node_id)).get("errors") or ()):
            name = _object(error.get("extra_info")).get("input_name")
            if error.get("type") == _NOT_LISTED and name in inputs:
                words = _value_elsewhere(asked, node["class_type"], name, node["inputs"][name])
                error["details"] = f"{error.get('details', '')}; {words}"
                yield f"{node['inputs'][name]!r} for {node['class_type']}.{name} is not here, and {words}"


def _class(refusal: Any, asked: Asked) -> Iterable[str]:
    """Complete the error about a node class, of which ComfyUI tells only the first."""
    error = _object(_object(refusal).get("error"))
    if error.get("type") not in _NO_CLASS:
        return
    told = str(error.get("message", "")).replace("'", " ").split()
    absent = [asked.prompt[node_id]["class_type"] for node_id, inputs in asked.missing.items() if inputs == [""]]
    for class_type in [one for one in absent if one in told][:1]:
        words = _class_elsewhere(asked, class_type)
        error["details"] = f"{error.get('details', '')}; {words}"
        yield f"node class {class_type} is not here, and {words}"


def _object(found: Any) -> dict[str, Any]:
    """An object of JSON; an empty one where it is something else, as in other versions of ComfyUI."""
    return found if isinstance(found, dict) else {}


def _value_elsewhere(asked: Asked, class_type: str, name: str, value: str) -> str:
    if unknown := _nobody_to_ask(asked):
        return unknown
    lists = [one.choice_lists[one.choices[class_type][name]] for one in asked.live.values() if name in one.choices.get(class_type, {})]
    near = nearest(normalise(value), {choice for choices in lists for choice in choices})
    has = [worker for worker, one in asked.live.items() if near and class_type in one.node_classes and offers(one, class_type, name, near)]
    return f"no worker has it either (asked: {_names(asked.live)}{_meant(near, has)})"


def _class_elsewhere(asked: Asked, class_type: str) -> str:
    if unknown := _nobody_to_ask(asked):
        return unknown
    near = nearest(class_type, {known for one in asked.live.values() for known in one.node_classes})
    has = [worker for worker, one in asked.live.items() if near in one.node_classes]
    return f"no worker has it either (asked: {_names(asked.live)}{_meant(near, has)})"


def _nobody_to_ask(asked: Asked) -> str:
    if asked.unanswered:
        return f"nobody knows whether a worker has it: {asked.unanswered}"
    return "" if asked.live else "no worker is running that could have it"


def _meant(near: str, has: Collection[str]) -> str:
    return f"; did you mean {near!r}, which {_names(has)} {'has' if len(has) == 1 else 'have'}?" if near else ""


def _names(workers: Collection[str]) -> str:
    listed = sorted(workers)
    more = [f"{len(listed) - _SHOWN_WORKERS} more"] if len(listed) > _SHOWN_WORKERS else []
    return ", ".join([*listed[:_SHOWN_WORKERS], *more])
