"""Reading a prompt: what is accepted, what is refused and how the refusal reads."""
from __future__ import annotations

import codecs
import json
from pathlib import Path
from typing import Any

import pytest

from distributed_comfy.errors import PromptIsWorkflow, PromptMalformed
from distributed_comfy.workflow.parse import parse_prompt
from tests.prompts import node, out, txt2img


def test_a_file_and_its_text_give_the_same_prompt(tmp_path: Path) -> None:
    file = tmp_path / "prompt.json"
    file.write_text(json.dumps(txt2img()), encoding="utf-8")
    assert parse_prompt(file) == parse_prompt(str(file)) == parse_prompt(file.read_text()) == parse_prompt(txt2img())
    assert parse_prompt(file).prompt == txt2img()


@pytest.mark.parametrize(
    ("mark", "encoding"),
    [(b"", "utf-8"), (codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF32_LE, "utf-32-le")],
)
def test_a_byte_order_mark_is_understood(tmp_path: Path, mark: bytes, encoding: str) -> None:
    file = tmp_path / "prompt.json"
    file.write_bytes(mark + json.dumps({"1": node("Ä")}, ensure_ascii=False).encode(encoding))
    assert parse_prompt(file).prompt == {"1": node("Ä")}


def test_the_body_that_scripts_post_keeps_only_the_image_metadata() -> None:
    body = {
        "prompt": txt2img(),
        "client_id": "me",
        "extra_data": {"extra_pnginfo": {"workflow": {"nodes": []}}, "auth_token_comfy_org": "secret", "api_key_comfy_org": "secret"},
    }
    parsed = parse_prompt(body)
    assert parsed.prompt == txt2img()
    assert parsed.extra_pnginfo == {"workflow": {"nodes": []}}
    assert "secret" not in repr(parsed)


def test_a_node_that_is_called_prompt_is_a_node() -> None:
    assert list(parse_prompt({"prompt": node("A"), "2": node("B", x=out("prompt"))}).prompt) == ["prompt", "2"]


def test_ids_of_flattened_subgraphs_are_ids() -> None:
    prompt = {"12:5": node("A"), "12:6": node("B", x=out("12:5"))}
    assert parse_prompt(prompt).prompt == prompt


def test_a_node_without_inputs_gets_an_empty_set() -> None:
    assert parse_prompt({"1": {"class_type": "A"}}).prompt == {"1": node("A")}


@pytest.mark.parametrize("literal", [{"__value__": ["9", 0]}, ["a", "b"], [1, 0], ["9"], ["9", 0, 1], [], None, {"a": [1]}])
def test_what_comfyui_takes_for_a_literal_is_one(literal: Any) -> None:
    assert parse_prompt({"1": node("A", x=literal)}).prompt["1"]["inputs"]["x"] == literal


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_file_of_the_editor_is_named_as_such(wrapped: bool) -> None:
    workflow = {"nodes": [], "links": [], "version": 0.4}
    with pytest.raises(PromptIsWorkflow, match=r"Export \(API\)"):
        parse_prompt({"prompt": workflow} if wrapped else workflow)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[]", "top level"),
        ("{}", "no nodes"),
        ('{"1": 3}', "node 1 is not an object"),
        ('{"1": {"inputs": {}}}', "node 1 has no class_type"),
        ('{"1": {"class_type": "", "inputs": {}}}', "node 1 has no class_type"),
        ('{"1": {"class_type": 7, "inputs": {}}}', "node 1 has no class_type"),
        ('{"1": {"class_type": "A", "inputs": []}}', "node 1 has inputs that are not an object"),
        ('{"1": {"class_type": "A", "inputs": {"x": ["2", 0]}}}', "input x of node 1 is linked to node 2, which does not exist"),
        ('{"1": {"class_type": "A", "inputs": {"x": ["1", -1]}}}', "output -1"),
        ('{"1": {"class_type": "A", "inputs": {"x": ["1", 0.5]}}}', "output 0.5"),
        ('{"1": {"class_type": "A", "inputs": {"x": ["1", true]}}}', "output True"),
        ('{"1": {"class_type": "A"}, "1": {"class_type": "B"}}', "key '1' appears twice"),
    ],
)
def test_what_is_not_an_api_graph_is_refused_with_the_place(text: str, reason: str) -> None:
    with pytest.raises(PromptMalformed, match=reason):
        parse_prompt(text)
