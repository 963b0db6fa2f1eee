"""The types that the panel's page is checked with are those of the API."""
from __future__ import annotations

import json

from write_panel_types import API, TYPES, types_of


def test_the_types_of_the_page_are_those_of_the_api() -> None:
    assert TYPES.read_text(encoding="utf-8") == types_of(json.loads(API.read_text(encoding="utf-8"))), "run `make docs`"


def test_a_schema_becomes_a_type() -> None:
    worker = {
        "type": "object", "description": "One worker.", "required": ["name"],
        "properties": {"name": {"type": "string"}, "items": {"type": "array", "items": {"$ref": "#/components/schemas/Item"}}},
    }  # fmt: skip
    schemas = {"Worker": worker, "Item": {"type": ["integer", "null"]}, "Level": {"enum": ["ok", "fail"]}}
    text = types_of({"components": {"schemas": schemas}})
    assert "/** One worker. */\nexport type Worker = {\n  name: string;\n  items?: Array<Item>;\n};" in text
    assert "export type Item = number | null;" in text and 'export type Level = "ok" | "fail";' in text
