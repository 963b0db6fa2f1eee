"""``--set NODE.INPUT=VALUE``."""
from __future__ import annotations

from typing import Any

import pytest

from distributed_comfy.errors import InputUnknown
from distributed_comfy.workflow.edit import set_input
from tests.prompts import node, out

PROMPT = {
    "12:5": {**node("KSampler", steps=20, cfg=8.0, seed=out("7"), mode="a", on=True, **{"model.kind": 1}), "_meta": {"title": "Main"}},
    "7": {**node("DistributedSeed", seed=5), "_meta": {"title": "Twin"}},
    "8": {**node("CLIPTextEncode", text="a cat"), "_meta": {"title": "Twin"}},
    "9": node("CLIPTextEncode", text="a dog"),
}


@pytest.mark.parametrize(
    ("assignment", "node_id", "key", "value"),
    [
        ("12:5.steps=30", "12:5", "steps", 30),
        ("KSampler.steps=30", "12:5", "steps", 30),
        ("Main.cfg=7.5", "12:5", "cfg", 7.5),
        ("12:5.model.kind=2", "12:5", "model.kind", 2),
        ("12:5.seed=18446744073709551615", "12:5", "seed", 2**64 - 1),
        ("12:5.steps=abc", "12:5", "steps", "abc"),
        ("12:5.steps=NaN", "12:5", "steps", "NaN"),
        ("12:5.on=False", "12:5", "on", False),
        ("12:5.on=true", "12:5", "on", True),
        ("12:5.mode=12", "12:5", "mode", "12"),
        ("8.text=C:\\models\\a.b=c.png", "8", "text", "C:\\models\\a.b=c.png"),
        ("8.text=", "8", "text", ""),
        ("12:5.steps=[1, 2, 3]", "12:5", "steps", {"__value__": [1, 2, 3]}),
    ],
)
def test_an_assignment_sets_one_literal(assignment: str, node_id: str, key: str, value: Any) -> None:
    changed = set_input(PROMPT, assignment)
    found = changed[node_id]["inputs"][key]
    assert found == value
    assert type(found) is type(value)
    assert [other for other in PROMPT if changed[other] is not PROMPT[other]] == [node_id]


def test_the_given_prompt_stays_as_it_is() -> None:
    set_input(PROMPT, "12:5.steps=30")
    assert PROMPT["12:5"]["inputs"]["steps"] == 20


@pytest.mark.parametrize(
    ("assignment", "reason"),
    [
        ("steps=30", "NODE.INPUT=VALUE"),
        ("12:5.steps", "NODE.INPUT=VALUE"),
        (".steps=1", "NODE.INPUT=VALUE"),
        ("99.steps=1", r"no node has the id.*12:5 \(Main\), 7 \(Twin\)"),
        ("CLIPTextEncode.text=x", "one of the ids 8, 9"),
        ("Twin.seed=1", "one of the ids 7, 8"),
        ("12:5.stepz=1", "no input 'stepz' in this file; it has steps, cfg"),
        ("12:5.on=yes", "takes true or false"),
        ('12:5.seed=["7", 0]', "is a link"),
    ],
)
def test_a_target_that_is_not_one_input_is_refused_with_candidates(assignment: str, reason: str) -> None:
    with pytest.raises(InputUnknown, match=reason):
        set_input(PROMPT, assignment)
