"""``--set NODE.INPUT=VALUE``."""
from __future__ import annotations

import re
from typing import Any

import pytest

from distributed_comfy.errors import InputUnknown
from distributed_comfy.nodes.registry import declared_inputs
from distributed_comfy.orchestrator.unknown_inputs import unknown_inputs
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


# -- inputs that the file leaves out ---------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("assignment", "node_id", "key", "value"),
    [("9.items=6", "9", "items", 6), ("9.on_missing=drop", "9", "on_missing", "drop"), ("1.+denoise=0.5", "1", "denoise", 0.5)],
)
def test_an_optional_input_is_added(assignment: str, node_id: str, key: str, value: Any) -> None:
    prompt = {"9": node("DistributedCollector", images=out("1")), "1": node("KSampler", steps=20)}
    assert set_input(prompt, assignment, declared_inputs)[node_id]["inputs"] == {**prompt[node_id]["inputs"], key: value}


@pytest.mark.parametrize(
    ("assignment", "words"),
    [
        ("9.itmes=6", "node 9 has no input 'itmes' in this file; it has images; did you mean items?"),
        ("1.stepz=3", "it has steps; did you mean steps?"),
        ("1.denoise=0.5", "it has steps; 1.+denoise=VALUE adds one that the file leaves out"),
    ],
)
def test_an_input_that_is_not_known_is_refused_with_what_may_be_meant(assignment: str, words: str) -> None:
    prompt = {"9": node("DistributedCollector", images=out("1")), "1": node("KSampler", steps=20)}
    with pytest.raises(InputUnknown, match=re.escape(words)):
        set_input(prompt, assignment, declared_inputs)


def test_an_input_that_a_node_of_ours_does_not_have_is_warned_of() -> None:
    prompt = {
        "9": node("DistributedCollector", images=out("1"), itmes=6, multi_job_id="x"), "1": node("KSampler", stepz=20),
        "5": node("DistributedSeed", seed=1, qqqq=1),
    }  # fmt: skip
    assert list(unknown_inputs(prompt)) == [
        "node 9 (DistributedCollector) has no input 'itmes', so that is ignored; did you mean 'items'?",
        "node 5 (DistributedSeed) has no input 'qqqq', so that is ignored; there are is_worker, seed, worker_id",
    ]
