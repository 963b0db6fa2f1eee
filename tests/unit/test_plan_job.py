"""How many items a prompt becomes, with which seeds, and what is refused."""
from __future__ import annotations

from typing import Any

import pytest

from distributed_comfy.errors import (
    CollectorsNested,
    ItemsOutOfRange,
    NothingToVary,
    PromptHasCycle,
    PromptHasNoOutput,
    PromptMalformed,
    SeedNotLiteral,
    SeedOutOfRange,
)
from distributed_comfy.messages import Patch, Prompt, apply_patches, content_hash, dump, load
from distributed_comfy.planning.files import FileReference
from distributed_comfy.planning.plan import JobPlan, PlanOptions, plan_job, resume_key
from tests.prompts import capability, generate_items, node, out, parsed, txt2img, without

NO_SEED = {**without(txt2img(), "seed")}
NO_SEED["sample"] = {**NO_SEED["sample"], "inputs": {**NO_SEED["sample"]["inputs"], "seed": 5}}
PLAIN = {**without(NO_SEED, "collect"), "save": node("SaveImage", images=out("decode"))}
UNCOLLECTED = {
    **without(txt2img(), "collect"),
    "save": node("SaveImage", images=out("decode")),
    "load": node("LoadImage", image="x.png"),
    "show": node("PreviewImage", images=out("load")),
}


def plan(prompt: Prompt, *, known: bool = True, **options: Any) -> JobPlan:
    return plan_job(parsed(prompt), PlanOptions(**options), [capability()] if known else [])


def seeds_of(job: JobPlan) -> list[Any]:
    """What reaches the sampler in each item."""
    return [
        apply_patches(dict(job.prompts[item.prompt_hash]), item.patches)["sample"]["inputs"]["seed"] for item in generate_items(job)
    ]


# -- a distributed prompt -----------------------------------------------------------------------------------------------
def test_n_seeds_become_n_items_and_a_last_stage() -> None:
    job = plan(txt2img(), items=3)
    assert [(item.index, item.kind) for item in job.items] == [(0, "generate"), (1, "generate"), (2, "generate"), (3, "last")]
    assert seeds_of(job) == [100, 101, 102]
    assert [item.seed for item in job.items] == ["100", "101", "102", "100"]
    assert [item.targets for item in job.items] == [("collect",)] * 3 + [("save",)]
    assert {item.prompt_hash for item in job.items} == set(job.prompts)
    assert all(content_hash(prompt) == key for key, prompt in job.prompts.items())


def test_no_item_keeps_a_seed_node() -> None:
    job = plan(txt2img(), items=2)
    assert all(value["class_type"] != "DistributedSeed" for prompt in job.prompts.values() for value in prompt.values())


def test_a_given_seed_is_item_zeros_and_enters_the_metadata() -> None:
    job = plan(txt2img(), items=2, seed=7)
    assert seeds_of(job) == [7, 8]
    assert job.original_prompt == {**txt2img(), "seed": node("DistributedSeed", seed=7)}
    assert job.original_prompt_hash == content_hash(job.original_prompt)


def test_the_metadata_keeps_the_users_prompt() -> None:
    prompt = txt2img(multi_job_id="j")
    assert plan(prompt, items=2).original_prompt == prompt


def test_one_seed_node_patches_every_input_it_feeds() -> None:
    prompt = txt2img()
    prompt["latent"] = node("KSampler", seed=out("seed"), latent_image=out("sample"))
    prompt["decode"] = node("VAEDecode", samples=out("latent"), vae=out("ckpt", 2))
    prompt["sample"] = {**prompt["sample"], "inputs": {**prompt["sample"]["inputs"], "latent_image": 0}}
    assert set(plan(prompt, items=2).items[1].patches) == {Patch("sample", "seed", 101), Patch("latent", "seed", 101)}


def test_two_seed_nodes_count_from_their_own_base() -> None:
    prompt = txt2img()
    prompt["two"] = node("DistributedSeed", seed=900)
    prompt["latent"] = node("EmptyLatentImage", width=out("two"))
    assert set(plan(prompt, items=2).items[1].patches) == {Patch("sample", "seed", 101), Patch("latent", "width", 901)}


def test_a_seed_from_a_number_node_is_followed() -> None:
    prompt = {**txt2img(seed=out("number")), "number": node("PrimitiveInt", value=40)}
    assert seeds_of(plan(prompt, items=2)) == [40, 41]


def test_a_seed_that_only_a_worker_knows_is_refused_unless_given() -> None:
    prompt = {**txt2img(seed=out("size")), "size": node("GetImageSize", image=out("load")), "load": node("LoadImage", image="x.png")}
    with pytest.raises(SeedNotLiteral, match="size"):
        plan(prompt, items=2)
    assert seeds_of(plan(prompt, items=2, seed=3)) == [3, 4]


@pytest.mark.parametrize("seed", [None, True, 1.5, "abc"])
def test_a_seed_that_is_no_whole_number_is_refused(seed: Any) -> None:
    with pytest.raises(PromptMalformed, match="whole number"):
        plan(txt2img(seed=seed))


def test_seeds_end_where_the_sampler_ends_and_not_where_the_seed_node_does() -> None:
    top = 2**64 - 1
    assert seeds_of(plan(txt2img(seed=top - 1), items=2)) == [top - 1, top]
    assert seeds_of(plan(txt2img(seed=top - 1), items=2, known=False)) == [top - 1, top]
    for seed, items in ((top, 2), (top + 1, 1), (-1, 1)):
        with pytest.raises(SeedOutOfRange, match=str(top)):
            plan(txt2img(seed=seed), items=items)


def test_a_sampler_with_a_lower_limit_lowers_the_limit() -> None:
    worker = capability(seed_limits={"KSampler": {"seed": "101"}})
    options = PlanOptions(items=3)
    with pytest.raises(SeedOutOfRange, match=r"0\.\.101"):
        plan_job(parsed(txt2img()), options, [capability(), worker])


# -- how many items -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("inputs", "options", "items"),
    [
        ({}, {}, 1),
        ({}, {"participants": 4}, 4),
        ({}, {"participants": 0}, 1),
        ({}, {"participants": 4, "items": 2}, 2),
        ({"items": 6}, {"participants": 4}, 6),
        ({"items": 0}, {"participants": 4}, 4),
        ({"items": 6}, {"participants": 4, "items": 2}, 2),
        ({"load_balance": True, "items": 6}, {"participants": 4}, 1),
        ({"load_balance": True}, {"items": 3}, 3),
    ],
)
def test_the_number_of_items(inputs: dict[str, Any], options: dict[str, Any], items: int) -> None:
    prompt = txt2img()
    prompt["collect"] = node("DistributedCollector", images=out("decode"), **inputs)
    assert len(generate_items(plan(prompt, **options))) == items


def test_items_from_a_number_node_are_followed_and_so_are_its_other_inputs() -> None:
    prompt = {**txt2img(items=out("number")), "number": node("PrimitiveInt", value=9)}
    job = plan(prompt, participants=2)
    assert len(generate_items(job)) == 9 and not job.warnings
    assert all("number" not in prompt for prompt in job.prompts.values())
    prompt["collect"]["inputs"].update(load_balance=out("switch"), on_missing=out("word"))
    prompt |= {"switch": node("PrimitiveBoolean", value=True), "word": node("PrimitiveString", value="drop")}
    job = plan(prompt, participants=2)
    assert len(generate_items(job)) == 1 and [each.on_missing for each in job.collectors] == ["drop"]
    with pytest.raises(PromptMalformed, match="whole number"):
        plan({**txt2img(items=out("number")), "number": node("PrimitiveString", value="9")})


def test_items_that_only_the_run_tells_are_ignored_with_a_warning() -> None:
    job = plan({**txt2img(items=out("number")), "number": node("GetImageSize", image=out("decode"))}, participants=2)
    assert len(generate_items(job)) == 2
    assert "not known before the run" in job.warnings[0]
    assert all("number" not in prompt for prompt in job.prompts.values())


@pytest.mark.parametrize("items", [0, -1, 10_001])
def test_items_out_of_range_are_refused(items: int) -> None:
    with pytest.raises(ItemsOutOfRange, match="10000"):
        plan(txt2img(), items=items)


def test_ten_thousand_items_are_planned() -> None:
    assert len(generate_items(plan(txt2img(), items=10_000))) == 10_000


@pytest.mark.parametrize("prompt", [NO_SEED, PLAIN], ids=["collector without seed", "nothing distributed"])
def test_nothing_to_vary_is_an_error_where_it_was_asked_for(prompt: Prompt) -> None:
    for options in ({"items": 2}, {"seed": 3}):
        with pytest.raises(NothingToVary, match="DistributedSeed"):
            plan(prompt, **options)
    assert len(generate_items(plan(prompt, items=1))) == 1


def test_a_seed_beside_the_collectors_path_varies_nothing() -> None:
    prompt = {**NO_SEED, "seed": node("DistributedSeed", seed=1), "show": node("PreviewImage", images=out("other")),
              "other": node("VAEDecode", samples=out("sample2")), "sample2": node("KSampler", seed=out("seed"))}
    with pytest.raises(NothingToVary, match="feeds the collector"):
        plan(prompt, items=2)


def test_items_of_the_collector_without_a_seed_are_an_error_and_the_default_is_one() -> None:
    prompt = dict(NO_SEED)
    job = plan(prompt, participants=4)
    assert len(generate_items(job)) == 1
    assert "only one runs" in job.warnings[0]
    prompt["collect"] = node("DistributedCollector", images=out("decode"), items=4)
    with pytest.raises(NothingToVary, match="items=4 on collector collect"):
        plan(prompt)


# -- prompts without a collector ----------------------------------------------------------------------------------------
def test_a_prompt_without_distributed_nodes_is_one_whole_item() -> None:
    job = plan(PLAIN, participants=4)
    assert [(item.kind, item.targets, item.patches, item.seed) for item in job.items] == [("whole", ("save",), (), "")]
    assert job.prompts[job.items[0].prompt_hash] == PLAIN
    assert not job.has_last_stage


def test_seeds_without_a_collector_run_what_sees_them_once_per_item() -> None:
    job = plan(UNCOLLECTED, items=3, participants=4)
    assert [item.targets for item in job.items] == [("save", "show"), ("save",), ("save",)]
    assert seeds_of(job) == [100, 101, 102]
    assert len(plan(UNCOLLECTED, participants=4).items) == 1


def test_nodes_that_lead_nowhere_are_left_out() -> None:
    prompt = {**txt2img(), "loose": node("Broken", x=out("decode")), "unused": node("DistributedSeed", seed="?")}
    job = plan(prompt, items=2)
    assert all(not {"loose", "unused"} & set(stage) for stage in job.prompts.values())


def test_a_prompt_that_makes_nothing_is_refused() -> None:
    with pytest.raises(PromptHasNoOutput):
        plan(without(PLAIN, "save"))


def test_a_collector_is_output_enough() -> None:
    job = plan(without(txt2img(), "save"), items=2)
    assert not job.has_last_stage
    assert [(one.consumed, one.unsaved) for one in job.collectors] == [(False, ("images",))]


def test_without_workers_output_nodes_are_known_by_name() -> None:
    assert plan(txt2img(), known=False, items=2).items[-1].targets == ("save",)
    with pytest.raises(PromptHasNoOutput):
        plan({"1": node("NobodyKnows")}, known=False)


def test_a_worker_of_another_engine_does_not_count() -> None:
    odd = capability(engine="builtin", output_classes=("KSampler",))
    job = plan_job(parsed(PLAIN), PlanOptions(engine="comfyui"), [odd, capability()])
    assert job.items[0].targets == ("save",)
    assert job.requirement.engine == "comfyui"


def test_a_cycle_is_refused() -> None:
    prompt = txt2img()
    prompt["latent"] = node("VAEEncode", pixels=out("decode"))
    with pytest.raises(PromptHasCycle):
        plan(prompt)


# -- collectors ---------------------------------------------------------------------------------------------------------
def nested(**second: Any) -> Prompt:
    again = node("DistributedCollector", images=out("collect"), **second)
    return {**txt2img(), "again": again, "save": node("SaveImage", images=out("again"))}


def test_nested_collectors_are_refused() -> None:
    with pytest.raises(CollectorsNested, match="collector collect feeds collector again"):
        plan(nested())


def test_a_collector_that_passes_through_runs_as_a_plain_node() -> None:
    job = plan(nested(pass_through=True, multi_job_id="j"), items=2)
    assert [one.node_id for one in job.collectors] == ["collect"]
    last = job.prompts[job.items[-1].prompt_hash]
    assert last["again"] == node("DistributedCollector", images=out("collect"), pass_through=True)


def test_a_loose_collector_is_left_out_and_a_used_one_refused() -> None:
    job = plan({**PLAIN, "collect": node("DistributedCollector", load_balance=False)})
    assert job.items[0].kind == "whole"
    assert "left out" in job.warnings[0]
    with pytest.raises(PromptMalformed, match="has none of images, audio, latents, masks"):
        plan({**PLAIN, "collect": node("DistributedCollector"), "show": node("PreviewImage", images=out("collect"))})


@pytest.mark.parametrize(("feeder", "slot"), [("collect", 4), ("seed", 1)])
def test_a_link_to_an_output_that_a_distributed_node_lacks_is_refused(feeder: str, slot: int) -> None:
    with pytest.raises(PromptMalformed, match=f"output {slot}"):
        plan({**txt2img(), "show": node("PreviewImage", images=out(feeder, slot))})


def test_a_seed_in_the_place_of_images_is_refused() -> None:
    with pytest.raises(PromptMalformed, match="not the seed"):
        plan({**txt2img(), "collect": node("DistributedCollector", images=out("decode"), audio=out("seed"))})


# -- requirements, files, resume key ------------------------------------------------------------------------------------
def test_each_stage_has_a_requirement_of_its_own() -> None:
    job = plan(txt2img(), items=2, tags=("big",))
    assert job.requirement.node_classes == ("CLIPTextEncode", "CheckpointLoaderSimple", "EmptyLatentImage", "KSampler", "VAEDecode")
    assert job.requirement.choices == (("CheckpointLoaderSimple", "ckpt_name", "a.safetensors"),)
    assert job.last_requirement is not None
    assert (job.last_requirement.node_classes, job.last_requirement.choices) == (("SaveImage",), ())
    assert job.requirement.tags == job.last_requirement.tags == ("big",)


@pytest.mark.parametrize("known", [True, False])
def test_files_to_bring_along_are_listed_once_with_their_folder(known: bool) -> None:
    prompt = {**UNCOLLECTED, "load2": node("LoadImage", image="sub/y.png [output]"), "show2": node("PreviewImage", images=out("load2"))}
    prompt["unused"] = node("LoadImage", image="z.png")
    assert set(plan(prompt, known=known).input_files) == {
        FileReference("load", "image", "x.png", "input", "x.png"),
        FileReference("load2", "image", "sub/y.png", "output", "sub/y.png [output]"),
    }


def test_a_folder_that_a_worker_made_up_holds_no_files() -> None:
    worker = capability(file_inputs={"LoadImage": {"image": "../etc"}, "KSampler": {"sampler_name": ""}})
    assert plan_job(parsed(UNCOLLECTED), PlanOptions(), [worker]).input_files == ()


def test_a_resume_key_changes_with_anything_that_decides_the_result() -> None:
    def key(prompt: Prompt = PLAIN, sha: str = "1", version: str = "0.3.64", **options: Any) -> str:
        return resume_key(plan(prompt, **options), input_hashes={"x.png": sha}, versions={"comfyui": version})

    assert key() == key()
    others = [key(sha="2"), key(version="0.3.65"), key(NO_SEED), key(txt2img()), key(txt2img(), items=2), key(txt2img(), seed=1)]
    assert len({key(), *others}) == 7


def test_item_specs_survive_the_wire() -> None:
    for item in plan(txt2img(seed=2**64 - 3), items=2).items:
        assert load(type(item), dump(item)) == item
