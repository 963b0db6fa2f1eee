"""``openapi.json`` as the server reads it: which routes there are, which of them need no token, and what a body must be.

Routes are added from it, so one that it does not have is not there, and one for which it says nothing else needs the token.
"""
from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from distributed_comfy.panel.bodies import BadRequest

PREFIX = "/distributed/v2"
_KINDS: Mapping[str, tuple[type | tuple[type, ...], str]] = {
    "string": (str, "text"), "boolean": (bool, "true or false"), "integer": (int, "a whole number"), "number": ((int, float), "a number"),
    "object": (dict, "an object"), "array": (list, "a list"),
}  # fmt: skip
_CHECKED_LATER = {"WorkerFields", "OptionChanges", "SettingChanges"}
"""By those who know what may stand there, with better words."""


@dataclass(frozen=True)
class Operation:
    """One method of one path."""

    name: str
    """``operationId``."""
    method: str
    path: str
    """As aiohttp has it, with the prefix."""
    is_open: bool
    """Needs no token."""
    body: Mapping[str, Any] | None
    """Schema of the JSON object that it is sent."""


@cache
def contract() -> dict[str, Any]:
    """The whole file."""
    found: dict[str, Any] = json.loads((resources.files("distributed_comfy.panel") / "openapi.json").read_text(encoding="utf-8"))
    return found


def operations() -> Iterator[Operation]:
    """All of them, in the order of the file."""
    for path, methods in contract()["paths"].items():
        for method, declared in methods.items():
            body = declared.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema")
            full = PREFIX + path.replace("{path}", "{path:.+}")
            yield Operation(declared["operationId"], method.upper(), full, declared.get("security") == [], body)


def check_body(operation: Operation, body: Mapping[str, Any]) -> None:
    """
    Raises:
        BadRequest: something is missing, or has another form; says of each field what it must be.
    """
    if operation.body is None or _name_of(operation.body) in _CHECKED_LATER:
        return
    schema = _resolved(operation.body)
    known: Mapping[str, Any] = schema["properties"]
    wrong = {name: f"is not known; there are {', '.join(known)}" for name in body if name not in known}
    wrong.update({name: "is missing" for name in schema.get("required", ()) if name not in body})
    for name, value in body.items():
        if name in known and _name_of(known[name]) not in _CHECKED_LATER and (reason := _why_wrong(value, _resolved(known[name]))):
            wrong[name] = reason
    if wrong:
        raise BadRequest(", ".join(f"{name[:60]} {reason}" for name, reason in wrong.items()), wrong)


def _why_wrong(value: Any, schema: Mapping[str, Any]) -> str:
    """What a value must be; empty where it is that."""
    python, words = _KINDS[schema["type"]]
    if not isinstance(value, python) or (isinstance(value, bool) and schema["type"] != "boolean"):
        return f"must be {words}"
    if "enum" in schema and value not in schema["enum"]:
        return f"must be one of {', '.join(schema['enum'])}"
    low, high = schema.get("minimum"), schema.get("maximum")
    return f"must be from {low} to {high}" if low is not None and high is not None and not low <= value <= high else ""


def _resolved(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    name = _name_of(schema)
    found: Mapping[str, Any] = contract()["components"]["schemas"][name] if name else schema
    return found


def _name_of(schema: Mapping[str, Any]) -> str:
    return str(schema.get("$ref", "")).rpartition("/")[2]
