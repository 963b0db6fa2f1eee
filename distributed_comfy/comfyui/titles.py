"""What a job of this ComfyUI is called: a prompt and its workflow go in, words by which whoever sent it knows it again come out."""
from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from distributed_comfy.comfyui.workflow_names import saved_name
from distributed_comfy.messages import Prompt

_LONGEST = 80
_SHOWN_OUTPUTS = 2
_USUAL_PREFIX = "ComfyUI"


def title_of(prompt: Prompt, outputs: Iterable[str], extra_pnginfo: Any, at_s: float, *, user_folder: Path | None = None) -> str:
    """The workflow's name where it has one, else what its output nodes save or are called; and the time, to tell runs apart.

    Args:
        prompt: in API format.
        outputs: ids of its output nodes.
        extra_pnginfo: what the editor sent along, with the ``workflow``; may be anything.
        at_s: when it was sent, in seconds since 1970.
        user_folder: see `workflow_names.saved_name`.
    """
    workflow = extra_pnginfo.get("workflow") if isinstance(extra_pnginfo, dict) else None
    name = _line(saved_name(user_folder, workflow)) or _named(workflow) or _of_outputs([prompt[one] for one in outputs if one in prompt])
    return f"{name or 'Prompt'}, {time.strftime('%H:%M', time.localtime(at_s))}"


def _named(workflow: Any) -> str:
    """As editors and packs write a name into a workflow; empty where none has."""
    extra = workflow.get("extra") if isinstance(workflow, dict) else None
    info = extra.get("info") if isinstance(extra, dict) else None
    places = (place for place in (workflow, extra, info) if isinstance(place, dict))
    return next((name for place in places if (name := _line(place.get("name")))), "")


def _of_outputs(nodes: list[dict[str, Any]]) -> str:
    names = list(dict.fromkeys(_of_output(node) for node in nodes))
    more = f" and {len(names) - _SHOWN_OUTPUTS} more" if len(names) > _SHOWN_OUTPUTS else ""
    return ", ".join(names[:_SHOWN_OUTPUTS]) + more


def _of_output(node: Mapping[str, Any]) -> str:
    """The beginning of its files' names where the user has chosen one, else its title, else its class."""
    return next(filter(None, _candidates(node)), str(node.get("class_type", "")))


def _candidates(node: Mapping[str, Any]) -> Iterator[str]:
    inputs, meta = node.get("inputs"), node.get("_meta")
    prefix = _line(inputs.get("filename_prefix")) if isinstance(inputs, dict) else ""
    yield "" if prefix.rpartition("/")[2] == _USUAL_PREFIX else prefix
    yield _line(meta.get("title")) if isinstance(meta, dict) else ""


def _line(text: Any) -> str:
    """A text in one line that is not too long; empty where it is none."""
    return " ".join(text.split())[:_LONGEST] if isinstance(text, str) else ""
