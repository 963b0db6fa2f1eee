"""Prompt texts that try to break the reader."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from distributed_comfy.errors import PromptUnreadable
from distributed_comfy.workflow.parse import parse_prompt


@pytest.mark.parametrize(
    "text",
    [
        "{",
        '{"1": NaN}',
        '{"1": -Infinity}',
        '{"1": 1e999}',
        '{"1": "\\ud800"}',
        '{"1": ' + "9" * 5000 + "}",
        '{"1": ' * 200_000,
        "[" * 200_000,
        '{"1": {"class_type": "A"}} trailing',
    ],
    ids=["cut off", "nan", "infinity", "overflow", "lone surrogate", "huge number", "deep object", "deep list", "trailing text"],
)
def test_text_that_is_not_json_is_refused(text: str) -> None:
    with pytest.raises(PromptUnreadable, match="not JSON"):
        parse_prompt(text)


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"\x89PNG\r\n\x1a\n\xff\xff", b"{\"1\": \"\xff\"}"])
def test_a_file_that_is_not_text_is_refused(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "prompt.json"
    file.write_bytes(content)
    with pytest.raises(PromptUnreadable):
        parse_prompt(file)


@pytest.mark.parametrize("source", ["no/such/file.json", "a\0b", ".", ""])
def test_a_path_that_cannot_be_read_is_named(source: str) -> None:
    with pytest.raises(PromptUnreadable):
        parse_prompt(source)


@pytest.mark.parametrize("value", [{"1": object()}, {"1": float("nan")}, {"1": {1, 2}}])
def test_a_dict_that_is_not_json_is_refused(value: Any) -> None:
    with pytest.raises(PromptUnreadable):
        parse_prompt(value)


def test_a_dict_that_contains_itself_is_refused() -> None:
    ring: dict[str, Any] = {}
    ring["1"] = ring
    with pytest.raises(PromptUnreadable):
        parse_prompt(ring)
