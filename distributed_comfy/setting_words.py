"""What a setting must be, in words for people: from its declaration, because a checking library speaks to programmers."""
from __future__ import annotations

import typing
from collections.abc import Mapping
from typing import Any

from pydantic.fields import FieldInfo

_PATTERNS = {
    r"^[A-Za-z0-9_.-]+:$": "letters, digits, _ . or - with a colon at the end",
    r"^(\d[\w.:~+-]*)?$": "a version, like 7.0.15",
    r"^([A-Za-z0-9_-]{43})?$": "what `distributed-comfy comfyui token` prints, of 43 letters, digits, _ and -",
    r"^[A-Za-z0-9., _-]*$": "names with commas between them, like comfy.example.org",
}


def requirement(declared: FieldInfo, error: Mapping[str, Any]) -> str:
    """What a wrong value should have been: ``must be a whole number from 1 to 16``.

    Args:
        declared: the setting.
        error: pydantic's account of what is wrong.
    """
    own = error.get("ctx", {}).get("error")
    if isinstance(own, ValueError):  # one of our validators, which says it itself
        return str(own)
    kinds = [kind for kind in (typing.get_args(declared.annotation) or (declared.annotation,)) if kind is not type(None)]
    for name, words in ((int, "a whole number"), (float, "a number")):
        if name in kinds:
            return f"must be {words}{_bounds(declared)}"
    choices = [choice for kind in kinds for choice in (typing.get_args(kind) or (kind,)) if isinstance(choice, str)]
    if choices:
        return f"must be {' or '.join(choices) if len(choices) < 3 else ', '.join(choices[:-1]) + ' or ' + choices[-1]}"
    patterns = [getattr(limit, "pattern", None) for limit in declared.metadata]
    return f"must be {next((_PATTERNS[pattern] for pattern in patterns if pattern in _PATTERNS), 'text')}"


def _bounds(declared: FieldInfo) -> str:
    limits = {name: getattr(limit, name) for limit in declared.metadata for name in ("ge", "gt", "le") if hasattr(limit, name)}
    if "le" in limits:
        return f" from {limits['ge']} to {limits['le']}"
    if "gt" in limits:
        return f" above {limits['gt']}"
    return f", {limits['ge']} or more" if "ge" in limits else ""
