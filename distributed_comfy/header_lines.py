"""HTTP headers as people write them in a setting: a JSON object, or lines of ``Name: value``."""
from __future__ import annotations

import json
import re

_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")


def parse_headers(text: str) -> tuple[tuple[str, str], ...]:
    """The (name, value) pairs of a setting.

    Raises:
        ValueError: it is neither; the message shows nothing of it, for it may hold a password.
    """
    pairs = _from_json(text) if text.lstrip().startswith("{") else _from_lines(text)
    for name, value in pairs:
        if not _NAME.fullmatch(name) or not re.fullmatch(r"[^\x00-\x08\x0a-\x1f\x7f]*", value):
            raise ValueError("must be a JSON object of texts, or lines like Name: value")
    return pairs


def _from_json(text: str) -> tuple[tuple[str, str], ...]:
    try:
        parsed = json.loads(text)
    except ValueError:
        parsed = None
    if not isinstance(parsed, dict) or not all(isinstance(value, str) for value in parsed.values()):
        raise ValueError("must be a JSON object of texts, or lines like Name: value")
    return tuple((name.strip(), value.strip()) for name, value in parsed.items())


def _from_lines(text: str) -> tuple[tuple[str, str], ...]:
    """A line without a colon has an empty name, which is refused."""
    lines = [line.partition(":") for line in text.splitlines() if line.strip()]
    return tuple((name.strip() if colon else "", value.strip()) for name, colon, value in lines)
