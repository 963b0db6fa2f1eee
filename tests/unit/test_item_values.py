"""DistributedValue and DistributedModelName before the run: what is read from them, and what each item then has."""
from __future__ import annotations

from typing import Any

import pytest

from distributed_comfy.errors import NothingToVary, PromptMalformed, SeedNotLiteral, ValueNotLiteral
from distributed_comfy.messages import Prompt, apply_patches
from distributed_comfy.planning.files import FileReference
from distributed_comfy.planning.plan import JobPlan, PlanOptions, plan_job
from distributed_comfy.workflow.item_values import read_item_values
from tests.prompts import capability, generate_items, node, out, parsed, txt2img, without


def plan(prompt: Prompt, **options: Any) -> JobPlan:
    return plan_job(parsed(prompt), PlanOptions(**options), [capability()])


def value(default: Any, worker_values: Any = "{}") -> dict[str, Any]:
    return node("DistributedValue", default_value=default, worker_values=worker_values)


def varied(values: dict[str, Any], target: str = "sample.steps") -> Prompt:
    """The example without a DistributedSeed; ``values`` feeds one input."""
    prompt = {**without(txt2img(), "seed"), "v": values}
    prompt["sample"]["inputs"]["seed"] = 5
    node_id, name = target.split(".")
    prompt[node_id]["inputs"][name] = out("v")
    return prompt


def had(job: JobPlan, node_id: str, name: str) -> list[Any]:
    """An input in each item."""
    return [apply_patches(dict(job.prompts[item.prompt_hash]), item.patches)[node_id]["inputs"][name] for item in generate_items(job)]


# -- reading ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("default", "worker_values", "expected"),
    [
        ("a", '{"1": "b", "2": "c"}', ["a", "b", "c", "a"]),
        ("4", '{"_type": "INT", "1": "5", "2": 6.9}', [4, 5, 6, 4]),
        ("4", '{"_type": "INT", "1": "9007199254740993"}', [4, 2**53 + 1, 4, 4]),
        ("0.5", '{"_type": "FLOAT", "1": "1", "3": "0.25"}', [0.5, 1.0, 0.5, 0.25]),
        ("x.safetensors", '{"_type": "COMBO", "2": "y.safetensors"}', ["x.safetensors", "x.safetensors", "y.safetensors", "x.safetensors"]),
        (4, '{"1": "5"}', [4, 5, 4, 4]),
        (True, '{"1": "no"}', [True, "no", True, True]),
        ("a", {"1": "b"}, ["a", "b", "a", "a"]),
        ("a", '{"1": "", "2": null}', ["a"] * 4),
        ("word", '{"_type": "INT", "1": "5"}', ["word", 5, "word", "word"]),
        ("a", "", ["a"] * 4),
    ],
)
def test_each_item_has_its_own_literal_or_the_default(default: Any, worker_values: Any, expected: list[Any]) -> None:
    values = read_item_values(default, worker_values)
    found = [values.of(index) for index in range(4)]
    assert found == expected and [type(one) for one in found] == [type(one) for one in expected]
    assert values.faults == ()


@pytest.mark.parametrize(
    ("worker_values", "named"),
    [
        ("not json", "no JSON object"), ("[1]", "no JSON object"), ('{"_type": "INT", "1": "five"}', "'five' of item 1 is no INT"),
        ('{"_type": "FLOAT", "1": "nan"}', "'nan' of item 1 is no FLOAT"), ('{"_type": "INT", "1": "1e999"}', "no INT"),
        ('{"1": ["4", 0]}', "of item 1"), ('{"gpu7": "x"}', "'gpu7' is no item number"), ('{"0": "x"}', "'0' is no item number"),
        ('{"²": "x"}', "no item number"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_named_and_the_default_stands_in(worker_values: str, named: str) -> None:
    values = read_item_values("4", worker_values)
    assert len(values.faults) == 1 and named in values.faults[0]
    assert values.of(1) == values.default in (4, "4")


# -- planning -----------------------------------------------------------------------------------------------------------
def test_a_value_becomes_a_literal_of_each_item_and_its_node_disappears() -> None:
    job = plan(varied(value("4", '{"_type": "INT", "1": "8"}')), items=3)
    assert had(job, "sample", "steps") == [4, 8, 4]
    assert [len(item.patches) for item in job.items] == [0, 1, 0, 0], "what item 0 has too is in the prompt"
    assert all(one["class_type"] != "DistributedValue" for prompt in job.prompts.values() for one in prompt.values())
    assert job.original_prompt["v"]["class_type"] == "DistributedValue"


def test_the_last_stage_has_item_zeros_value() -> None:
    prompt = varied(value("4", '{"_type": "INT", "1": "8"}'))
    prompt["save"]["inputs"]["filename_prefix"] = out("v")
    job = plan(prompt, items=2)
    assert job.prompts[job.items[-1].prompt_hash]["save"]["inputs"]["filename_prefix"] == 4


def test_a_node_behind_a_value_depends_on_the_item_so_its_edge_is_captured() -> None:
    prompt = varied(value("4", '{"_type": "INT", "1": "8"}'))
    prompt["save"]["inputs"]["extra"] = out("decode")
    assert plan(prompt, items=2).edges == ("decode~0",)
    prompt["v"] = value("4")
    assert plan(prompt).edges == (), "nothing differs"


def test_seeds_and_values_go_together() -> None:
    prompt = txt2img(seed=100)
    prompt["v"] = value("4", '{"_type": "INT", "2": "9"}')
    prompt["sample"]["inputs"]["steps"] = out("v")
    job = plan(prompt, items=3)
    assert had(job, "sample", "steps") == [4, 4, 9] and had(job, "sample", "seed") == [100, 101, 102]


def test_items_need_a_value_that_differs() -> None:
    with pytest.raises(NothingToVary, match="DistributedValue"):
        plan(varied(value("4")), items=2)
    assert len(generate_items(plan(varied(value("4", '{"_type": "INT", "1": "8"}')), participants=3))) == 3


def test_without_a_collector_output_nodes_that_see_the_value_run_in_each_item() -> None:
    prompt = varied(value("4", '{"_type": "INT", "1": "8"}'))
    prompt["save"]["inputs"]["images"] = out("decode")
    job = plan(without(prompt, "collect"), items=2)
    assert [(item.kind, item.targets) for item in job.items] == [("generate", ("save",))] * 2


def test_a_default_of_a_number_or_text_node_counts_and_any_other_is_refused() -> None:
    prompt = {**varied(value(out("n"), '{"1": "9"}')), "n": node("PrimitiveInt", value=7)}
    assert had(plan(prompt, items=2), "sample", "steps") == [7, 9]
    prompt["n"] = node("GetImageSize", image=out("decode"))
    del prompt["sample"]["inputs"]["steps"]
    prompt["save"]["inputs"]["extra"] = out("v")
    with pytest.raises(ValueNotLiteral, match=r"default_value from node n \(GetImageSize\)"):
        plan(prompt)


def test_a_seed_cannot_come_from_a_value() -> None:
    prompt = {**txt2img(seed=out("v")), "v": value("4", '{"_type": "INT", "1": "8"}')}
    with pytest.raises(SeedNotLiteral):
        plan(prompt, items=2)


@pytest.mark.parametrize(("link", "match"), [(["v", 1], "output 1 of node v, which has one"), (["v", 0], "not the value of node v")])
def test_a_value_is_linked_only_where_it_can_be(link: list[Any], match: str) -> None:
    prompt = varied(value("4"))
    prompt["collect"]["inputs"]["audio" if link[1] == 0 else "items"] = link
    with pytest.raises(PromptMalformed, match=match):
        plan(prompt)


def test_faults_are_warnings() -> None:
    job = plan(varied(value("4", '{"_type": "INT", "1": "five", "2": "8"}')), items=3)
    assert job.warnings == ("DistributedValue v: 'five' of item 1 is no INT; its default is used",)


# -- models and files ---------------------------------------------------------------------------------------------------
def test_a_worker_needs_the_models_of_all_items() -> None:
    prompt = varied(value("a.safetensors", '{"_type": "COMBO", "1": "sub\\\\b.safetensors", "5": "never.safetensors"}'), "ckpt.ckpt_name")
    job = plan(prompt, items=3)
    names = {choice[2] for choice in job.requirement.choices}
    assert names == {"a.safetensors", "sub/b.safetensors"}, "no item of this job has the third"


def test_a_model_name_is_put_where_it_is_needed_and_still_shown_in_item_zero() -> None:
    prompt = txt2img()
    prompt["name"] = node("DistributedModelName", text="other.safetensors")
    prompt["ckpt"]["inputs"]["ckpt_name"] = out("name")
    job = plan(prompt, items=2)
    assert had(job, "ckpt", "ckpt_name") == ["other.safetensors"] * 2
    assert ("CheckpointLoaderSimple", "ckpt_name", "other.safetensors") in job.requirement.choices
    assert [item.targets for item in job.items] == [("collect", "name"), ("collect",), ("save",)]


def test_a_model_name_hands_on_the_value_of_each_item() -> None:
    prompt = varied(value("a.safetensors", '{"1": "b.safetensors"}'), "ckpt.ckpt_name")
    prompt["name"] = node("DistributedModelName", text=out("v"))
    prompt["ckpt"]["inputs"]["ckpt_name"] = out("name")
    job = plan(prompt, items=2)
    assert had(job, "ckpt", "ckpt_name") == ["a.safetensors", "b.safetensors"] == had(job, "name", "text")


def test_a_model_name_that_only_the_run_can_tell_stays_a_link() -> None:
    prompt = txt2img()
    prompt["size"] = node("GetImageSize", image=out("load"))
    prompt["load"] = node("LoadImage", image="x.png")
    prompt["name"] = node("DistributedModelName", text=out("size"))
    prompt["ckpt"]["inputs"]["ckpt_name"] = out("name")
    assert had(plan(prompt, items=2), "ckpt", "ckpt_name") == [out("name")] * 2


def test_the_files_of_all_items_are_brought_along() -> None:
    prompt = txt2img()
    prompt["v"] = value("x.png", '{"1": "sub/y.png [output]"}')
    prompt["load"] = node("LoadImage", image=out("v"))
    prompt["mix"] = node("ImageBlend", image1=out("decode"), image2=out("load"))
    prompt["collect"]["inputs"]["images"] = out("mix")
    assert plan(prompt, items=2).input_files == (
        FileReference("load", "image", "x.png", "input", "x.png"),
        FileReference("load", "image", "sub/y.png", "output", "sub/y.png [output]"),
    )
