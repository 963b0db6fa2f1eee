"""Writes the types of the panel's API for its page, from openapi.json: the page is checked against what the server promises."""
from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
API = ROOT / "distributed_comfy" / "panel" / "openapi.json"
TYPES = ROOT / "distributed_comfy" / "panel" / "web" / "api_types.d.ts"
_HEAD = "// Written by scripts/write_panel_types.py from openapi.json (`make docs`); do not change it by hand.\n"
_SIMPLE = {"string": "string", "integer": "number", "number": "number", "boolean": "boolean", "null": "null"}


def types_of(api: dict[str, Any]) -> str:
    """The whole file: one type for each schema."""
    return _HEAD + "".join(_declaration(name, schema) for name, schema in api["components"]["schemas"].items())


def _declaration(name: str, schema: dict[str, Any]) -> str:
    comment = _comment(schema, "")
    return f"\n{comment}export type {name} = {_type(schema, '')};\n"


def _type(schema: dict[str, Any], indent: str) -> str:
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    if "enum" in schema:
        return " | ".join(json.dumps(value) for value in schema["enum"])
    if "anyOf" in schema:
        return " | ".join(_type(each, indent) for each in schema["anyOf"])
    kinds = schema.get("type", [])
    return " | ".join(_of_kind(kind, schema, indent) for kind in ([kinds] if isinstance(kinds, str) else kinds)) or "unknown"


def _of_kind(kind: str, schema: dict[str, Any], indent: str) -> str:
    if kind == "array":
        return f"Array<{_type(schema['items'], indent)}>"
    return _object(schema, indent) if kind == "object" else _SIMPLE[kind]


def _object(schema: dict[str, Any], indent: str) -> str:
    values = schema.get("additionalProperties")
    if "properties" not in schema:
        return f"Record<string, {_type(values, indent) if isinstance(values, dict) else 'unknown'}>"
    inner, required = indent + "  ", schema.get("required", [])
    fields = [
        f"{_comment(field, inner)}{inner}{name}{'' if name in required else '?'}: {_type(field, inner)};\n"
        for name, field in schema["properties"].items()
    ]
    return "{\n" + "".join(fields) + indent + "}"


def _comment(schema: dict[str, Any], indent: str) -> str:
    return f"{indent}/** {schema['description']} */\n" if "description" in schema else ""


def main() -> int:
    """Write the file."""
    TYPES.write_text(types_of(json.loads(API.read_text(encoding="utf-8"))), encoding="utf-8")
    print(f"{TYPES.relative_to(ROOT)} written")
    return 0


if __name__ == "__main__":
    sys.exit(main())
