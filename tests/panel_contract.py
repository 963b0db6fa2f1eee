"""openapi.json of the panel as tests use it: every operation, requests that fit each, and answers compared with it."""
from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from jsonschema import Draft202012Validator

PREFIX = "/distributed/v2"
HEADER = "X-Distributed-Comfy-Token"
STREAM = "text/event-stream"


@cache
def document() -> dict[str, Any]:
    """The file."""
    found: dict[str, Any] = json.loads((resources.files("distributed_comfy.panel") / "openapi.json").read_text("utf-8"))
    return found


@dataclass(frozen=True)
class Declared:
    """One operation."""

    name: str
    method: str
    path: str
    operation: dict[str, Any]

    @property
    def is_open(self) -> bool:
        """Needs no token."""
        return bool(self.operation["security"] == [])

    def url(self, **named: Any) -> str:
        """Its path with these names in it; what is not given is ``x``."""
        names = {part["name"]: "x" for part in self.operation.get("parameters", ()) if part["in"] == "path"}
        return PREFIX + self.path.format(**{**names, "index": 0, **named})


def declared() -> list[Declared]:
    """All operations."""
    return [
        Declared(operation["operationId"], method.upper(), path, operation)
        for path, methods in document()["paths"].items()
        for method, operation in methods.items()
    ]


def find(method: str, path: str) -> Declared:
    """The operation that answers a request."""
    plain = path.partition("?")[0].removeprefix(PREFIX)
    fitting = [each for each in declared() if each.method == method and _fits(each.path, plain)]
    assert fitting, f"openapi.json does not have {method} {plain}"
    return max(fitting, key=lambda each: sum(not part.startswith("{") for part in each.path.split("/")))


def check(schema: dict[str, Any], value: Any, what: str) -> None:
    """Fails where a value is not as its schema has it."""
    validator = Draft202012Validator({**schema, "components": document()["components"]})
    wrong = [f"{'/'.join(map(str, error.absolute_path))}: {error.message[:300]}" for error in validator.iter_errors(value)]
    assert not wrong, f"{what}: {wrong[:5]}"


def check_answer(method: str, path: str, status: int, content_type: str, content: bytes) -> None:
    """Fails where an answer is none that openapi.json promises."""
    operation = find(method, path)
    answers = operation.operation["responses"]
    assert str(status) in answers, f"{operation.name} answers {status}, which openapi.json does not have: {content[:300]!r}"
    answer = answers[str(status)]
    if "$ref" in answer:
        answer = document()["components"]["responses"][answer["$ref"].rpartition("/")[2]]
    kind = content_type.partition(";")[0].strip()
    if "application/json" in answer["content"]:
        assert kind == "application/json", f"{operation.name} answers {kind}"
        check(answer["content"]["application/json"]["schema"], json.loads(content), operation.name)
    elif "application/octet-stream" not in answer["content"]:
        assert kind in answer["content"], f"{operation.name} answers {kind}"


def check_event(name: str, value: Any) -> None:
    """Fails where an event is none that openapi.json promises."""
    events = [
        content[STREAM]["x-events"]
        for each in declared()
        if STREAM in (content := each.operation["responses"]["200"].get("content", {}))
    ]
    schema = next(found[name] for found in events if name in found)
    check(schema, value, f"event {name}")


def bodies() -> dict[str, dict[str, Any]]:
    """For each operation that takes a body one that fits."""
    return {
        "add_worker": {"fields": {"device": "cpu"}}, "edit_worker": {"fields": {}, "name": "pc1-b"}, "order_worker": {"order": "look"},
        "order_all": {"order": "look"}, "order_job": {"order": "pause"}, "invite_host": {"name": "pc2"}, "change_options": {"debug": True},
        "interrupt": {"what": "mine"}, "examine": {"engine": False}, "import_config": {"text": "{}", "dry_run": True},
        "change_settings": {"changes": {"DC_JOB_TTL_S": 600}},
    }  # fmt: skip


def with_bodies() -> Iterator[tuple[Declared, dict[str, Any]]]:
    """Operations that take a body, with one that fits."""
    for each in declared():
        if "requestBody" in each.operation:
            yield each, bodies()[each.name]


def _fits(declared_path: str, path: str) -> bool:
    wanted, given = declared_path.split("/"), path.split("/")
    if wanted[-1] == "{path}":
        given = [*given[: len(wanted) - 1], "/".join(given[len(wanted) - 1 :])]
    pairs = list(zip(wanted, given, strict=False))
    return len(wanted) == len(given) and all(want == have or (want.startswith("{") and bool(have)) for want, have in pairs)
