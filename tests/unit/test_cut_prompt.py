"""Where a prompt is cut, what crosses the cut, and what runs again."""
from __future__ import annotations

from typing import Any

import pytest

from distributed_comfy.errors import PromptMalformed
from distributed_comfy.messages import Prompt
from distributed_comfy.planning.plan import JobPlan, PlanOptions, plan_job
from tests.prompts import capability, node, out, parsed, txt2img


def plan(prompt: Prompt, **options: Any) -> JobPlan:
    return plan_job(parsed(prompt), PlanOptions(**{"items": 2, **options}), [capability()])


def stages(job: JobPlan) -> tuple[Prompt, Prompt]:
    """Item prompt and last prompt."""
    return job.prompts[job.items[0].prompt_hash], job.prompts[job.items[-1].prompt_hash]


def test_a_sink_and_a_source_take_the_collectors_id() -> None:
    item, last = stages(plan(txt2img()))
    assert item["collect"] == node("DistributedSink", claim_id="", images=out("decode"))
    assert last == {
        "collect": node("DistributedSource", claim_id="", slots="images"),
        "save": node("SaveImage", images=out("collect"), filename_prefix="x"),
    }
    assert set(item) == set(txt2img()) - {"seed", "save"}


def test_hidden_inputs_of_the_other_pack_do_not_reach_a_worker() -> None:
    plain, busy = plan(txt2img()), plan(txt2img(multi_job_id="j", is_worker=True, master_url="http://x", unheard_of=1))
    assert plain.prompts == busy.prompts


def test_a_collector_with_missing_widgets_is_a_collector() -> None:
    prompt = {**txt2img(), "collect": node("DistributedCollector", images=out("decode"))}
    assert plan(prompt).prompts == plan(txt2img()).prompts


@pytest.mark.parametrize(("wired", "slots"), [({"audio"}, "audio"), ({"images", "audio"}, "images,audio")])
def test_audio_is_captured_too(wired: set[str], slots: str) -> None:
    prompt = txt2img()
    prompt["sound"] = node("VAEDecodeAudio", samples=out("sample"))
    feeds = {"images": out("decode"), "audio": out("sound")}
    prompt["collect"] = node("DistributedCollector", **{name: feeds[name] for name in wired})
    job = plan(prompt)
    item, last = stages(job)
    assert job.collectors[0].slots == tuple(slots.split(","))
    assert {name for name in item["collect"]["inputs"] if name != "claim_id"} == wired
    assert last["collect"]["inputs"]["slots"] == slots


# -- output nodes -------------------------------------------------------------------------------------------------------
def test_output_nodes_before_the_collector_run_in_item_zero_alone() -> None:
    job = plan({**txt2img(), "show": node("PreviewImage", images=out("decode"))}, items=3)
    assert [item.targets for item in job.items] == [("collect", "show"), ("collect",), ("collect",), ("save",)]
    assert "show" not in stages(job)[1]


def test_output_nodes_beside_any_collector_run_in_item_zero() -> None:
    job = plan({**txt2img(), "load": node("LoadImage", image="x.png"), "show": node("PreviewImage", images=out("load"))})
    assert [item.targets for item in job.items] == [("collect", "show"), ("collect",), ("save",)]


def test_an_output_node_on_both_sides_runs_once_and_hands_its_value_over() -> None:
    prompt = {**txt2img(), "load": node("LoadImage", image="x.png"), "split": node("ImageBatchDivider", images=out("load"), divide_by=2)}
    prompt["mix"] = node("ImageBlend", image1=out("collect"), image2=out("split", 1))
    prompt["save"] = node("SaveImage", images=out("mix"))
    job = plan(prompt)
    assert job.edges == ("split~1",)
    assert "split" not in stages(job)[1]


def test_an_output_node_whose_value_cannot_travel_runs_again_with_a_warning() -> None:
    prompt = {**txt2img(), "tap": node("ModelTap", model=out("ckpt"))}
    prompt["save"] = node("SaveImage", images=out("collect"), model=out("tap"))
    job = plan(prompt)
    assert {"tap", "ckpt"} <= set(stages(job)[1])
    assert "output node tap (ModelTap) runs again" in job.warnings[0]


# -- nodes on both sides ------------------------------------------------------------------------------------------------
def test_loaders_and_other_constants_run_again() -> None:
    prompt = txt2img()
    prompt["encode"] = node("VAEEncode", pixels=out("collect"), vae=out("ckpt", 2))
    prompt["second"] = node("KSampler", model=out("ckpt"), positive=out("pos"), negative=out("neg"), latent_image=out("encode"), seed=1)
    prompt["save"] = node("SaveImage", images=out("decode2"))
    prompt["decode2"] = node("VAEDecode", samples=out("second"), vae=out("ckpt", 2))
    job = plan(prompt)
    item, last = stages(job)
    assert job.edges == ()
    assert {"ckpt", "pos", "neg", "second"} <= set(last)
    assert {"ckpt", "pos", "neg", "sample"} <= set(item)
    assert not {"sample", "decode", "latent"} & set(last)


def test_a_value_that_depends_on_the_seed_and_can_travel_is_captured_from_item_zero() -> None:
    prompt = txt2img()
    prompt["mix"] = node("ImageBlend", image1=out("collect"), image2=out("decode"))
    prompt["save"] = node("SaveImage", images=out("mix"))
    job = plan(prompt)
    item, last = stages(job)
    assert job.edges == ("decode~0",)
    assert [one.targets for one in job.items] == [("collect", "decode~0"), ("collect",), ("save",)]
    assert item["decode~0"] == node("DistributedSink", claim_id="", value=out("decode"))
    assert last["decode~0"] == node("DistributedSource", claim_id="", slots="value")
    assert last["mix"]["inputs"] == {"image1": out("collect"), "image2": out("decode~0")}
    assert "decode" not in last


def test_one_captured_output_serves_every_user() -> None:
    prompt = txt2img()
    prompt["mix"] = node("ImageBlend", image1=out("decode"), image2=out("decode"))
    prompt["mix2"] = node("ImageBlend", image1=out("collect"), image2=out("mix"))
    prompt["mix3"] = node("ImageBlend", image1=out("mix2"), image2=out("decode"))
    prompt["save"] = node("SaveImage", images=out("mix3"))
    assert plan(prompt).edges == ("decode~0", "mix~0")


def test_a_value_that_cannot_travel_is_made_again_from_item_zeros_values() -> None:
    prompt = txt2img()
    prompt["control"] = node("ControlNetApply", conditioning=out("pos"), image=out("decode"), strength=out("seed"))
    prompt["second"] = node("KSampler", positive=out("control"), latent_image=out("encode"))
    prompt["encode"] = node("VAEEncode", pixels=out("collect"))
    prompt["save"] = node("SaveImage", images=out("second"))
    job = plan(prompt)
    last = stages(job)[1]
    assert job.edges == ("decode~0",)
    assert last["control"]["inputs"] == {"conditioning": out("pos"), "image": out("decode~0"), "strength": 100}
    assert "sample" not in last


def test_a_value_of_unknown_type_is_made_again() -> None:
    prompt = txt2img()
    prompt["switch"] = node("Switch", a=out("decode"), b=out("ckpt"))
    prompt["mix"] = node("ImageBlend", image1=out("collect"), image2=out("switch"))
    prompt["save"] = node("SaveImage", images=out("mix"))
    job = plan(prompt)
    assert job.edges == ("decode~0",)
    assert "switch" in stages(job)[1]


def test_workers_that_disagree_on_a_type_make_it_unknown() -> None:
    prompt = {**txt2img(), "save": node("SaveImage", images=out("collect"), extra=out("sample"))}
    other = capability(output_types={"KSampler": ("SOMETHING",)})
    agreed = plan_job(parsed(prompt), PlanOptions(items=2), [capability()])
    assert agreed.edges == ("sample~0",)
    assert plan_job(parsed(prompt), PlanOptions(items=2), [capability(), other]).edges == ()


def test_the_seed_in_the_last_stage_is_item_zeros() -> None:
    prompt = {**txt2img(), "save": node("SaveImage", images=out("collect"), number=out("seed"))}
    item, last = stages(plan(prompt))
    assert last["save"]["inputs"]["number"] == 100
    assert "save" not in item


def test_an_id_that_a_crossing_edge_needs_is_refused() -> None:
    prompt = {**txt2img(), "decode~0": node("LoadImage", image="x.png"), "show": node("PreviewImage", images=out("decode~0"))}
    prompt["save"] = node("SaveImage", images=out("collect"), extra=out("decode"))
    with pytest.raises(PromptMalformed, match="decode~0"):
        plan(prompt)


# -- several collectors, and who saves ----------------------------------------------------------------------------------
def test_parallel_collectors_are_captures_of_one_item() -> None:
    prompt = {**txt2img(), "flip": node("ImageInvert", image=out("decode")), "collect2": node("DistributedCollector", images=out("flip"))}
    prompt["mix"] = node("ImageBlend", image1=out("collect"), image2=out("collect2"))
    prompt["save"] = node("SaveImage", images=out("mix"))
    job = plan(prompt)
    assert [item.targets for item in job.items] == [("collect", "collect2")] * 2 + [("save",)]
    assert [(one.node_id, one.consumed, one.unsaved) for one in job.collectors] == [("collect", True, ()), ("collect2", True, ())]


def test_a_collector_that_nothing_uses_is_left_to_the_master() -> None:
    prompt = {**txt2img(), "collect2": node("DistributedCollector", images=out("decode"))}
    prompt["loose"] = node("ImageInvert", image=out("collect2"))
    job = plan(prompt)
    assert [(one.node_id, one.consumed, one.unsaved) for one in job.collectors] == [("collect", True, ()), ("collect2", False, ("images",))]
    assert not {"collect2", "loose"} & set(stages(job)[1])


@pytest.mark.parametrize("output", [node("ImageBatchDivider", images=out("collect")), node("SaveLatent", samples=out("encode"))])
def test_images_that_no_output_node_saves_are_left_to_the_master(output: dict[str, Any]) -> None:
    prompt = {**txt2img(), "encode": node("VAEEncode", pixels=out("collect")), "save": output}
    assert [(one.consumed, one.unsaved) for one in plan(prompt).collectors] == [(True, ("images",))]


def test_flattened_subgraph_ids_are_cut_like_any_other() -> None:
    names = {"decode": "12:5", "collect": "12:6", "save": "12:7"}

    def renamed(value: Any) -> Any:
        return [names.get(value[0], value[0]), value[1]] if isinstance(value, list) else value

    prompt = {
        names.get(node_id, node_id): node(one["class_type"], **{key: renamed(value) for key, value in one["inputs"].items()})
        for node_id, one in txt2img().items()
    }
    prompt["12:7"]["inputs"]["extra"] = out("12:5")
    job = plan(prompt)
    assert job.edges == ("12:5~0",)
    assert job.items[0].targets == ("12:6", "12:5~0")
