"""An item of a job as nodes for the ComfyUI that the job came from."""
from __future__ import annotations

from typing import Any

from distributed_comfy.comfyui.expansion import CAPTURE_CLASS, END_CLASS, Expansion, LocalItem, OuterPrompt, expand_item
from distributed_comfy.messages import Prompt, apply_patches
from distributed_comfy.planning.plan import JobPlan, PlanOptions, plan_job
from tests.prompts import capability, node, out, parsed, txt2img
from tests.upscale_prompts import batch, worker

CLONES = {"x:sample", "x:decode"}
ENDS = {"x:~capture0", "x:~end"}


def plan(prompt: Prompt, items: int = 3, outputs: tuple[str, ...] = ("save",), **options: Any) -> JobPlan:
    return plan_job(parsed(prompt), PlanOptions(items=items, outer_outputs=outputs, **options), [capability()])


def expanded(
    prompt: Prompt, index: int, running: Prompt | None = None, runs_anyway: frozenset[str] = frozenset(), **options: Any
) -> Expansion:
    job = plan(prompt, **options)
    item = job.items[index]
    stage = apply_patches(dict(job.prompts[item.prompt_hash]), item.patches)
    return expand_item(LocalItem(stage, item.targets, "claim", "collect"), OuterPrompt(prompt, running or prompt, runs_anyway), "x:")


# -- the plan ------------------------------------------------------------------------------------------------------------
def test_what_follows_the_collector_is_left_to_the_prompt_itself() -> None:
    job = plan(txt2img())
    assert [item.kind for item in job.items] == ["generate"] * 3
    assert job.last_requirement is None
    assert all("save" not in stage for stage in job.prompts.values())


def test_output_nodes_beside_the_collector_are_left_to_the_prompt_itself() -> None:
    prompt = {**txt2img(), "look": node("PreviewImage", images=out("decode"))}
    job = plan(prompt, outputs=("save", "look"))
    assert all(item.targets == ("collect",) for item in job.items)


def test_a_collector_that_no_wanted_output_uses_is_no_part_of_the_job() -> None:
    prompt = {**txt2img(), "other": node("DistributedCollector", images=out("decode")), "look": node("PreviewImage", images=out("other"))}
    assert [one.node_id for one in plan(prompt).collectors] == ["collect"]


def test_a_class_that_no_worker_knows_may_be_an_output_because_the_prompt_says_so() -> None:
    prompt = {**txt2img(), "save": node("CustomSaver", images=out("collect"))}
    job = plan_job(parsed(prompt), PlanOptions(outer_outputs=("save",), participants=2), [])
    assert len(job.items) == 2 and not job.has_last_stage


def test_an_upscale_has_items_tiles_and_no_last_stage() -> None:
    job = plan_job(parsed(batch()), PlanOptions(items=2, outer_outputs=("save",)), [worker()])
    assert [item.kind for item in job.items] == ["generate", "generate", "prepare"]
    assert job.tiles is not None and job.tiles.node_id == "up"
    assert job.last_requirement is None


# -- clones --------------------------------------------------------------------------------------------------------------
def test_only_what_depends_on_the_seed_is_cloned() -> None:
    found = expanded(txt2img(), 1)
    assert set(found.nodes) == CLONES | ENDS
    assert found.shared == {"ckpt", "pos", "neg", "latent"}
    assert found.nodes["x:sample"]["inputs"]["seed"] == 101
    assert found.nodes["x:sample"]["inputs"]["model"] == ["ckpt", 0]
    assert found.nodes["x:decode"]["inputs"] == {"samples": ["x:sample", 0], "vae": ["ckpt", 2]}


def test_item_zero_takes_what_the_prompt_itself_makes_anyway() -> None:
    found = expanded(txt2img(), 0, runs_anyway=frozenset({"sample", "decode"}))
    assert set(found.nodes) == ENDS
    assert found.nodes["x:~capture0"]["inputs"]["images"] == ["decode", 0]


def test_item_zero_is_cloned_like_all_others_where_the_prompt_would_not_run_it() -> None:
    """An item that fails here is given back; a node of the prompt itself that fails ends the prompt."""
    assert set(expanded(txt2img(), 0).nodes) == CLONES | ENDS


def test_item_zero_is_cloned_where_the_job_has_another_seed_than_the_prompt() -> None:
    assert set(expanded(txt2img(), 0, seed=7, runs_anyway=frozenset({"sample", "decode"})).nodes) >= CLONES


def test_clones_are_shown_at_the_users_nodes_and_captures_at_the_collector() -> None:
    found = expanded(txt2img(), 1)
    assert {node_id: one["override_display_id"] for node_id, one in found.nodes.items()} == {
        "x:sample": "sample", "x:decode": "decode", "x:~capture0": "collect", "x:~end": "collect",
    }  # fmt: skip


def test_the_end_comes_after_the_captures_of_all_collectors() -> None:
    prompt = {**txt2img(), "two": node("DistributedCollector", images=out("decode")), "look": node("PreviewImage", images=out("two"))}
    found = expanded(prompt, 2, outputs=("save", "look"))
    captures = {node_id: one for node_id, one in found.nodes.items() if one["class_type"] == CAPTURE_CLASS}
    assert {one["inputs"]["sink"] for one in captures.values()} == {"collect", "two"}
    assert found.nodes["x:~capture1"]["inputs"]["after"] == ["x:~capture0", 0]
    assert found.nodes[found.end] == {
        "class_type": END_CLASS, "inputs": {"claim_id": "claim", "after": ["x:~capture1", 0]}, "override_display_id": "collect"
    }  # fmt: skip


def test_a_clone_has_literals_as_comfyuis_validation_left_them() -> None:
    """ComfyUI does not validate what a node adds: a text where a number belongs would reach the sampler."""
    prompt = txt2img()
    prompt["sample"]["inputs"]["steps"] = "4"
    prompt["sample"]["inputs"]["sigmas"] = {"__value__": [1, 2]}
    running = {**prompt, "sample": node("KSampler", **{**prompt["sample"]["inputs"], "steps": 4, "sigmas": [1, 2, 3]})}
    found = expanded(prompt, 1, running=running)
    assert found.nodes["x:sample"]["inputs"]["steps"] == 4
    assert found.nodes["x:sample"]["inputs"]["sigmas"] == [1, 2, 3]
    assert found.nodes["x:sample"]["inputs"]["seed"] == 101


def test_a_value_of_the_item_is_no_value_of_the_prompt() -> None:
    values = node("DistributedValue", default_value="1", worker_values='{"_type": "INT", "1": 1, "2": 2}')
    prompt = {**txt2img(), "value": values}
    prompt["latent"] = node("EmptyLatentImage", width=64, height=64, batch_size=out("value"))
    found = expanded(prompt, 2)
    assert found.nodes["x:latent"]["inputs"]["batch_size"] == 2
    assert found.nodes["x:sample"]["inputs"]["latent_image"] == ["x:latent", 0]


def test_what_an_old_pack_wrote_into_a_node_does_not_make_it_another_one() -> None:
    prompt = txt2img()
    prompt["empty"] = node("DistributedCollector", images=out("decode"), pass_through=True, multi_job_id="old")
    prompt["collect"]["inputs"]["images"] = out("empty")
    assert "empty" in expanded(prompt, 0, runs_anyway=frozenset({"sample", "decode", "empty"})).shared


def test_nothing_of_the_prompt_is_changed() -> None:
    prompt = txt2img()
    before = {node_id: {**one, "inputs": dict(one["inputs"])} for node_id, one in prompt.items()}
    expanded(prompt, 1)
    assert prompt == before
