"""Reads what a user hands in as a prompt: text, file or dict in, a checked API-format graph out."""
from __future__ import annotations

import codecs
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from distributed_comfy.errors import PromptIsWorkflow, PromptMalformed, PromptUnreadable
from distributed_comfy.messages import Prompt
from distributed_comfy.workflow.graph import Link, as_link

_ENCODINGS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark is its first half
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


@dataclass(frozen=True)
class ParsedPrompt:
    """A prompt whose every link leads to a node of it."""

    prompt: Prompt
    extra_pnginfo: dict[str, Any] = field(default_factory=dict)
    """What ComfyUI writes into image metadata beside the prompt; the only part of ``extra_data`` that is kept."""


def parse_prompt(source: str | Path | Mapping[str, Any]) -> ParsedPrompt:
    """Read and check a prompt.

    Args:
        source: a path, JSON text (it starts with ``{`` or ``[``), or the parsed JSON; either the graph itself or the body that
            scripts POST, ``{"prompt": graph, "extra_data": {...}}``. Of ``extra_data`` only ``extra_pnginfo`` survives: the rest
            can hold credentials.

    Raises:
        PromptUnreadable: no such file, not text, or not JSON.
        PromptIsWorkflow: a file saved for ComfyUI's editor.
        PromptMalformed: the JSON is not an API-format graph; the reason names the node.
    """
    name, text = _read(source)
    top = _decode(name, text)
    if not isinstance(top, dict):
        raise PromptMalformed(source=name, reason="the top level is not an object of nodes")
    _refuse_workflow(name, top)
    graph, extra = top, {}
    if isinstance(top.get("prompt"), dict) and "class_type" not in top["prompt"]:
        graph, extra = top["prompt"], _extra_pnginfo(top.get("extra_data"))
        _refuse_workflow(name, graph)
    return ParsedPrompt(_checked(name, graph), extra)


def _read(source: str | Path | Mapping[str, Any]) -> tuple[str, str]:
    """A name for messages, and the JSON text."""
    if isinstance(source, Mapping):
        try:
            return "<dict>", json.dumps(source)
        except (TypeError, ValueError, RecursionError) as error:
            raise PromptUnreadable(source="<dict>", reason=f"not JSON: {error}") from error
    if isinstance(source, str) and source.lstrip("\ufeff \t\r\n")[:1] in ("{", "["):
        return "<text>", source.removeprefix("\ufeff")
    try:
        raw = Path(source).read_bytes()
        return str(source), raw.decode(next((name for mark, name in _ENCODINGS if raw.startswith(mark)), "utf-8"))
    except (OSError, ValueError) as error:  # ValueError: not text in that encoding, or a NUL in the path
        raise PromptUnreadable(source=source, reason=getattr(error, "strerror", None) or error) from error


def _decode(name: str, text: str) -> Any:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) < len(pairs):
            keys = [key for key, _ in pairs]
            raise PromptMalformed(source=name, reason=f"the key {next(key for key in keys if keys.count(key) > 1)!r} appears twice")
        return result

    def no_constant(constant: str) -> NoReturn:
        raise ValueError(f"{constant} is no JSON value")

    try:
        value = json.loads(text, object_pairs_hook=unique, parse_constant=no_constant)
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()  # 1e999 and lone surrogates could never be stored
    except (ValueError, RecursionError) as error:
        raise PromptUnreadable(source=name, reason=f"not JSON: {error}") from error
    return value


def _refuse_workflow(name: str, top: dict[str, Any]) -> None:
    if isinstance(top.get("nodes"), list) and isinstance(top.get("links"), list):
        raise PromptIsWorkflow(source=name)


def _extra_pnginfo(extra_data: Any) -> dict[str, Any]:
    extra = extra_data.get("extra_pnginfo") if isinstance(extra_data, dict) else None
    return extra if isinstance(extra, dict) else {}


def _checked(name: str, graph: dict[str, Any]) -> Prompt:
    if not graph:
        raise PromptMalformed(source=name, reason="it has no nodes")
    for node_id, node in graph.items():
        reason = _node_fault(node)
        if reason:
            raise PromptMalformed(source=name, reason=f"node {node_id} {reason}")
    prompt: Prompt = {node_id: {**node, "inputs": node.get("inputs", {})} for node_id, node in graph.items()}
    for node_id, node in prompt.items():
        for key, value in node["inputs"].items():
            reason = _link_fault(as_link(value), value, prompt)
            if reason:
                raise PromptMalformed(source=name, reason=f"input {key} of node {node_id} {reason}")
    return prompt


def _node_fault(node: Any) -> str:
    if not isinstance(node, dict):
        return "is not an object"
    if not isinstance(node.get("class_type"), str) or not node["class_type"]:
        return "has no class_type"
    if not isinstance(node.get("inputs", {}), dict):
        return "has inputs that are not an object"
    return ""


def _link_fault(link: Link | None, value: Any, prompt: Prompt) -> str:
    if link is None:
        return ""
    if link.node_id not in prompt:
        return f"is linked to node {link.node_id}, which does not exist"
    if type(value[1]) is not int or link.slot < 0:
        return f"is linked to output {value[1]!r} of node {link.node_id}; an output is a number from 0"
    return ""
