"""Where a prompt with an upscale is cut, and what each of its stages takes from the ones before."""
from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from distributed_comfy.errors import (
    CollectorsNested,
    NothingToVary,
    PromptHasNoOutput,
    PromptMalformed,
    SeveralUpscales,
    UpscaleOfItems,
    UpscalesNested,
    UpscaleUnused,
)
from distributed_comfy.messages import ItemKind, JobRecord, Prompt, content_hash, dump, load
from distributed_comfy.planning.plan import JobPlan, resume_key
from distributed_comfy.tile_stage import PrepareStage, TileConstant, TileStage, ValuePlace
from tests.prompts import generate_items, node, out, without
from tests.upscale_prompts import batch, photo, plan, stage, upscale

FIRST = ValuePlace("first", "scale~0", "value")


def tiles(job: JobPlan) -> TileStage:
    assert job.tiles is not None
    return job.tiles


def kinds(job: JobPlan) -> list[tuple[int, ItemKind, tuple[str, ...]]]:
    return [(item.index, item.kind, item.targets) for item in job.items]


def record(job: JobPlan) -> JobRecord:
    """As submitting makes it."""
    return JobRecord(
        "0123456789ab", "ann", 5, len(job.items), tuple(job.prompts), job.original_prompt_hash, collectors=job.collectors,
        edges=job.edges, has_prepare=job.has_prepare, has_last_stage=job.has_last_stage, grows=True, tiles=job.tiles,
    )  # fmt: skip


# -- the stages ---------------------------------------------------------------------------------------------------------
def test_a_photo_is_prepared_by_one_item_and_finished_by_the_last_stage() -> None:
    job = plan(photo())
    assert kinds(job) == [(0, "generate", ("scale~0",)), (1, "last", ("save",))]
    assert stage(job, "generate") == {
        "load": node("LoadImage", image="x.png"),
        "scale": photo()["scale"],
        "scale~0": node("DistributedSink", claim_id="", value=out("scale")),
    }
    assert stage(job, "last") == {"up": node("DistributedSource", claim_id="", slots="images"), "save": photo()["save"]}
    assert tiles(job).image == FIRST and tiles(job).prepare is None
    assert all(content_hash(prompt) == key for key, prompt in job.prompts.items())


def test_a_tile_runs_stock_nodes_in_the_place_of_the_upscale() -> None:
    job = plan(photo())
    shared = {name: photo()[name] for name in ("ckpt", "pos", "neg")}
    assert stage(job, "tile") == {
        **shared,
        "up~pixels": node("DistributedSource", claim_id="", slots="value"),
        "up~regions": node("DistributedTileRegions", tiles="", seed=42, denoise=0.4),
        "up~given": node("DistributedTileInputs", model=out("ckpt"), positive=out("pos"), negative=out("neg"), vae=out("ckpt", 2)),
        "up~filled": node("DistributedTilePixels", crop=out("up~pixels"), region=out("up~regions"), vae=out("up~given", 3)),
        "up~model": node("DistributedTileModel", model=out("up~given"), region=out("up~filled", 1)),
        "up~positive": node("DistributedTileConditioning", conditioning=out("up~given", 1), region=out("up~filled", 1)),
        "up~negative": node("DistributedTileConditioning", conditioning=out("up~given", 2), region=out("up~filled", 1)),
        "up~encode": node("VAEEncode", pixels=out("up~filled"), vae=out("up~given", 3)),
        "up~latent": node("DistributedTileLatent", latent=out("up~encode"), region=out("up~filled", 1)),
        "up~sample": node(
            "KSampler", model=out("up~model"), positive=out("up~positive"), negative=out("up~negative"), latent_image=out("up~latent"),
            seed=out("up~regions", 1), steps=12, cfg=7.5, sampler_name="euler", scheduler="normal", denoise=out("up~regions", 2),
        ),
        "up~decode": node("VAEDecode", samples=out("up~sample"), vae=out("up~given", 3)),
        "up~cut": node("DistributedTileImage", image=out("up~decode"), crop=out("up~pixels"), pixels=out("up~filled")),
        "up": node("DistributedSink", claim_id="", images=out("up~cut")),
    }  # fmt: skip
    found = tiles(job)
    assert (found.node_id, found.targets, found.pixels, found.regions, found.seed) == ("up", ("up",), "up~pixels", "up~regions", "42")
    assert found.constants == () and found.deterministic == "any"


def test_tiled_decode_takes_comfyuis_own_node_and_numbers() -> None:
    decode = stage(plan(photo(tiled_decode=True)), "tile")["up~decode"]
    numbers = {"tile_size": 512, "overlap": 64, "temporal_size": 64, "temporal_overlap": 8}
    assert decode == node("VAEDecodeTiled", samples=out("up~sample"), vae=out("up~given", 3), **numbers)


def test_items_are_collected_then_prepared_then_upscaled_as_one_batch() -> None:
    job = plan(batch(), items=3)
    generated: list[tuple[int, ItemKind, tuple[str, ...]]] = [(index, "generate", ("collect",)) for index in range(3)]
    assert kinds(job) == [*generated, (3, "prepare", ("scale~0",)), (4, "last", ("save",))]
    assert stage(job, "prepare") == {
        "collect": node("DistributedSource", claim_id="", slots="images"),
        "scale": batch()["scale"],
        "scale~0": node("DistributedSink", claim_id="", value=out("scale")),
    }
    assert tiles(job).image == ValuePlace("prepare", "scale~0", "value")
    assert tiles(job).prepare == PrepareStage(("collect",), ())
    assert [(one.node_id, one.consumed, one.unsaved) for one in job.collectors] == [("collect", False, ())]
    assert [item.seed for item in job.items] == ["100", "101", "102", "100", "100"]


def test_nothing_is_prepared_where_the_upscale_takes_the_collected_images_themselves() -> None:
    job = plan(batch(image="collect"), items=2)
    assert [item.kind for item in job.items] == ["generate", "generate", "last"]
    assert tiles(job).image == ValuePlace("every", "collect", "images")
    assert tiles(job).prepare is None and not job.has_prepare


def test_the_record_tells_every_index() -> None:
    with_all, photo_alone = record(plan(batch(), items=3)), record(plan(photo()))
    assert (with_all.generated, with_all.prepare_index, with_all.last_index, with_all.first_tile) == (3, 3, 4, 5)
    assert (photo_alone.generated, photo_alone.prepare_index, photo_alone.last_index, photo_alone.first_tile) == (1, None, 1, 2)
    assert load(JobRecord, dump(with_all)) == with_all
    assert generate_items(plan(batch(), items=3)) == plan(batch(), items=3).items[:3]


def test_a_seed_beside_the_collectors_reaches_tiles_as_item_zeros_number() -> None:
    job = plan(batch(seed=out("seed")), items=3, seed=7)
    assert stage(job, "tile")["up~regions"]["inputs"]["seed"] == 7
    assert tiles(job).seed == "7"
    assert [patch.node_id for item in job.items for patch in item.patches] == ["sample"] * 3


def test_a_given_seed_leaves_the_upscales_own_as_it_is() -> None:
    assert tiles(plan(batch(), items=2, seed=7)).seed == "42"
    with pytest.raises(NothingToVary, match="--seed"):
        plan(photo(), seed=7)


# -- output nodes, and what the last stage takes --------------------------------------------------------------------------
def test_output_nodes_before_the_upscale_run_once_where_their_input_is_made() -> None:
    show = {"show": node("PreviewImage", images=out("scale")), "first": node("PreviewImage", images=out("load"))}
    assert kinds(plan({**photo(), **show})) == [(0, "generate", ("show", "first", "scale~0")), (1, "last", ("save",))]
    early = {"show": node("PreviewImage", images=out("scale")), "first": node("PreviewImage", images=out("decode"))}
    assert kinds(plan({**batch(), **early}, items=2)) == [
        (0, "generate", ("collect", "first")), (1, "generate", ("collect",)), (2, "prepare", ("show", "scale~0")), (3, "last", ("save",))
    ]  # fmt: skip


def test_an_output_node_behind_the_collector_runs_last_where_nothing_is_prepared() -> None:
    job = plan({**batch(image="collect"), "show": node("PreviewImage", images=out("collect"))}, items=2)
    assert job.items[-1].targets == ("save", "show")
    assert [one.consumed for one in job.collectors] == [True]


def compared(prompt: Prompt, link: list[Any]) -> Prompt:
    mix = node("ImageBlend", image1=out("up"), image2=link)
    return {**prompt, "mix": mix, "save": node("SaveImage", images=out("mix"))}


def test_the_image_before_and_after_can_meet_in_the_last_stage() -> None:
    job = plan(compared(photo(), out("scale")))
    assert job.edges == ("scale~0",) and tiles(job).late_edges == ()
    assert job.items[0].targets == ("scale~0",)
    assert stage(job, "last")["mix"]["inputs"] == {"image1": out("up"), "image2": out("scale~0")}
    late = plan(compared(batch(), out("scale")), items=2)
    assert late.edges == () and tiles(late).late_edges == ("scale~0",)
    assert stage(late, "last")["scale~0"] == node("DistributedSource", claim_id="", slots="value")


def test_a_loaded_image_that_is_upscaled_is_captured_in_any_case_and_so_taken_from_there() -> None:
    job = plan(compared(photo(image="load"), out("load")))
    assert job.edges == ("load~0",)
    assert "load" not in stage(job, "last")


def test_the_sound_of_a_video_is_handed_on_and_the_video_not_loaded_again() -> None:
    prompt = {**photo(image="video"), "video": node("LoadClip", file="a.mp4")}
    prompt["save"]["inputs"]["audio"] = out("video", 1)
    job = plan(prompt)
    assert job.edges == ("video~1",)
    assert set(stage(job, "last")) == {"up", "video~1", "save"}


def test_what_an_output_node_saves_while_the_image_is_prepared_is_not_saved_again() -> None:
    prompt = {**batch(), "sound": node("VAEDecodeAudio", samples=out("sample")), "keep": node("PreviewImage", audio=out("collect", 1))}
    prompt["collect"]["inputs"]["audio"] = out("sound")
    assert [one.unsaved for one in plan(prompt, items=2).collectors] == [()]
    assert [one.unsaved for one in plan(without(prompt, "keep"), items=2).collectors] == [("audio",)]


def test_what_the_preparing_item_made_is_handed_on_and_not_made_again() -> None:
    prompt = compared(batch(image="sharp"), out("scale"))
    prompt["sharp"] = node("ImageInvert", image=out("scale"))
    job = plan(prompt, items=2)
    assert job.items[2].targets == ("sharp~0", "scale~0")
    assert tiles(job).late_edges == ("scale~0",)
    assert set(stage(job, "last")) == {"up", "scale~0", "mix", "save"}


def test_what_one_item_sampled_is_handed_on_and_what_it_loaded_is_loaded_again() -> None:
    prompt = compared({**without(batch(), "collect"), "scale": node("ImageScale", image=out("decode"))}, out("decode"))
    prompt["mix"]["inputs"]["mask"] = out("load", 1)
    prompt["load"] = node("LoadImage", image="x.png")
    prompt["scale"]["inputs"]["mask"] = out("load", 1)
    prompt["sample"]["inputs"]["seed"] = 5  # nothing varies, and yet nobody samples a second time
    job = plan(prompt)
    assert job.edges == ("decode~0",)
    assert "load" in stage(job, "last") and "sample" not in stage(job, "last")


def test_values_of_item_zero_reach_the_preparing_item_and_make_it_indispensable() -> None:
    prompt = batch()
    prompt["scale"]["inputs"]["reference"] = out("decode")
    prompt["collect"]["inputs"]["on_missing"] = "drop"
    job = plan(prompt, items=2)
    assert job.items[0].targets == ("collect", "decode~0")
    assert tiles(job).prepare == PrepareStage(("collect",), ("decode~0",))
    assert job.edges == ()
    assert record(job).spare == "others"
    assert record(plan({**batch(), "collect": prompt["collect"]}, items=2)).spare == "all"


def test_an_image_that_no_collector_joins_is_item_zeros() -> None:
    prompt = {**batch(), "scale": node("ImageScale", image=out("decode")), "show": node("PreviewImage", images=out("collect"))}
    job = plan(prompt, items=2)
    assert job.items[0].targets == ("collect", "scale~0") and tiles(job).image == FIRST
    assert job.items[-1].targets == ("save", "show")
    assert any("takes item 0's image alone" in warning for warning in job.warnings)


# -- what tiles take -----------------------------------------------------------------------------------------------------
def hinted(prompt: Prompt, image: list[Any]) -> Prompt:
    """With a ControlNet whose hint is made of ``image``."""
    return {
        **prompt,
        "net": node("ControlNetLoader", control_net_name="n.safetensors"),
        "hint": node("Canny", image=image),
        "control": node("ControlNetApply", conditioning=out("pos"), control_net=out("net"), image=out("hint"), strength=1.0),
        "up": {**prompt["up"], "inputs": {**prompt["up"]["inputs"], "positive": out("control")}},
    }


def test_a_hint_is_made_once_and_handed_to_every_tile() -> None:
    job = plan(hinted(photo(), out("load")))
    assert job.items[0].targets == ("scale~0", "hint~0")
    assert tiles(job).constants == (TileConstant("hint~0", ValuePlace("first", "hint~0", "value")),)
    tile = stage(job, "tile")
    assert tile["hint~0"] == node("DistributedSource", claim_id="", slots="value")
    assert tile["control"]["inputs"]["image"] == out("hint~0")
    assert {"net", "control", "ckpt", "pos"} <= set(tile) and not {"hint", "load"} & set(tile)


def test_a_hint_made_of_the_scaled_batch_is_made_where_that_is() -> None:
    job = plan(hinted(batch(), out("scale")), items=2)
    assert job.items[2].targets == ("scale~0", "hint~0")
    assert tiles(job).constants == (TileConstant("hint~0", ValuePlace("prepare", "hint~0", "value")),)


def test_the_image_itself_as_a_hint_is_captured_once() -> None:
    prompt = hinted(photo(), out("load"))
    prompt["control"]["inputs"]["image"] = out("scale")
    job = plan(prompt)
    assert job.items[0].targets == ("scale~0",)
    assert tiles(job).constants == (TileConstant("scale~0", FIRST),)


def test_a_hint_behind_the_collector_needs_a_preparing_item_where_the_image_does_not() -> None:
    job = plan(hinted(batch(image="collect"), out("collect")), items=2)
    assert tiles(job).image == ValuePlace("every", "collect", "images")
    assert [item.targets for item in job.items] == [("collect",), ("collect",), ("hint~0",), ("save",)]


def test_collected_images_as_a_hint_come_joined_and_without_the_slots_that_nothing_uses() -> None:
    prompt = hinted(batch(image="collect"), out("decode"))
    prompt["collect"]["inputs"]["latents"] = out("sample")
    prompt["control"]["inputs"]["image"] = out("collect")
    job = plan(prompt, items=2)
    assert tiles(job).constants == (TileConstant("collect", ValuePlace("every", "collect", "images")),)
    assert stage(job, "tile")["collect"] == node("DistributedSource", claim_id="", slots="images")


def test_what_a_worker_reads_off_a_picture_is_handed_on_in_its_place() -> None:
    prompt = photo()
    prompt["caption"] = node("Caption", image=out("scale"))
    prompt["pos"]["inputs"]["text"] = out("caption")
    job = plan(prompt)
    assert [constant.source_id for constant in tiles(job).constants] == ["caption~0"]
    assert {"caption", "scale", "load"}.isdisjoint(stage(job, "tile"))


def test_cheap_nodes_stay_in_every_tile_and_literals_of_primitives_take_their_place() -> None:
    prompt = photo(steps=out("number"))
    prompt["number"] = node("PrimitiveInt", value=9)
    prompt["lora"] = node("LoraLoaderModelOnly", model=out("ckpt"), strength_model=out("number"))
    prompt["up"]["inputs"]["model"] = out("lora")
    tile = stage(plan(prompt), "tile")
    assert tile["up~sample"]["inputs"]["steps"] == 9
    assert tile["lora"]["inputs"] == {"model": out("ckpt"), "strength_model": out("number")}


def test_a_number_that_workers_could_make_differently_is_made_once() -> None:
    prompt = {**photo(seed=out("dice"), sampler_name=out("choice")), "dice": node("RandomInt"), "choice": node("SamplerChoice")}
    job = plan(prompt)
    assert tiles(job).seed == ""
    assert {constant.source_id for constant in tiles(job).constants} == {"dice~0", "choice~0"}
    tile = stage(job, "tile")
    assert (tile["up~given"]["inputs"]["seed"], tile["up~given"]["inputs"]["sampler_name"]) == (out("dice~0"), out("choice~0"))
    assert tile["up~regions"]["inputs"]["seed"] == out("up~given", 4)
    assert tile["up~sample"]["inputs"]["sampler_name"] == out("up~given", 7)


def test_a_text_that_depends_on_the_seed_is_the_one_that_item_zero_made() -> None:
    prompt = {**batch(), "wild": node("Wildcard", text="a {cat|dog}", seed=out("seed"))}
    prompt["pos"]["inputs"]["text"] = out("wild")
    job = plan(prompt, items=2)
    assert job.tiles is not None and [constant.place.item for constant in job.tiles.constants] == ["first"]
    assert "wild" not in stage(job, "tile")


def test_a_model_that_depends_on_the_item_is_item_zeros() -> None:
    prompt = batch()
    prompt["value"] = node("DistributedValue", default_value=0.5, worker_values='{"1": 0.9}')
    prompt["lora"] = node("LoraLoaderModelOnly", model=out("ckpt"), strength_model=out("value"))
    prompt["up"]["inputs"]["model"] = out("lora")
    prompt["sample"]["inputs"]["model"] = out("lora")
    assert stage(plan(prompt, items=2), "tile")["lora"]["inputs"]["strength_model"] == 0.5


# -- collectors, several upscales -----------------------------------------------------------------------------------------
@pytest.mark.parametrize("widgets", [{}, {"load_balance": False, "pass_through": False}, {"on_missing": "drop"}])
def test_a_collector_behind_the_upscale_passes_through(widgets: dict[str, Any]) -> None:
    collect = node("DistributedCollector", images=out("up"), **widgets)
    job = plan({**photo(), "again": collect, "save": node("SaveImage", images=out("again"))}, participants=4)
    assert stage(job, "last")["again"]["inputs"]["pass_through"] is True
    assert job.collectors == () and len(job.items) == 2
    assert job.warnings == ("collector again lies behind upscale up and passes its images through",)


def test_a_collector_that_was_set_to_pass_through_says_nothing() -> None:
    collect = node("DistributedCollector", images=out("up"), pass_through=True)
    job = plan({**batch(), "again": collect, "save": node("SaveImage", images=out("again"))}, items=2)
    assert [one.node_id for one in job.collectors] == ["collect"] and job.warnings == ()


def test_collectors_before_the_upscale_must_not_be_nested() -> None:
    prompt = batch()
    prompt["again"] = node("DistributedCollector", images=out("collect"))
    prompt["scale"]["inputs"]["image"] = out("again")
    with pytest.raises(CollectorsNested):
        plan(prompt)


def varied(**collector: Any) -> Prompt:
    """seed -> sampler -> decode -> upscale -> collector."""
    collect = node("DistributedCollector", images=out("up"), **collector)
    return {**batch(image="decode"), "collect": collect, "save": node("SaveImage", images=out("collect"))}


def test_several_items_with_nothing_to_join_them_before_the_upscale_are_refused() -> None:
    with pytest.raises(UpscaleOfItems, match=r"items=4 on collector collect .* put a DistributedCollector before it"):
        plan(varied(items=4))
    with pytest.raises(UpscaleOfItems, match="--items 3"):
        plan(varied(), items=3)
    with pytest.raises(NothingToVary, match="DistributedCollector before the upscale"):
        plan(photo(), items=3)
    assert len(plan(varied(items=4, pass_through=True)).items) == 2
    assert len(plan(varied(items=4), items=1).items) == 2
    assert len(plan(varied(), participants=5).items) == 2


def test_load_balance_before_and_behind_the_upscale() -> None:
    prompt = batch()
    prompt["collect"]["inputs"]["load_balance"] = True
    assert [item.kind for item in plan(prompt, participants=4).items] == ["generate", "prepare", "last"]
    assert len(plan(varied(load_balance=True, items=4, pass_through=True), participants=4).items) == 2


def test_items_without_anything_that_varies_before_the_collector_are_an_error() -> None:
    prompt = batch()
    prompt["sample"]["inputs"]["seed"] = 5
    with pytest.raises(NothingToVary, match="feeds the collector"):
        plan(without(prompt, "seed"), items=2)
    assert len(generate_items(plan(without(prompt, "seed"), participants=3))) == 1


def test_two_upscales_are_refused_with_both_names() -> None:
    nested = {**photo(), "second": upscale("up"), "save": node("SaveImage", images=out("second"))}
    with pytest.raises(UpscalesNested, match="upscale up feeds upscale second"):
        plan(nested)
    parallel = {**photo(), "second": upscale("scale"), "other": node("SaveImage", images=out("second"))}
    with pytest.raises(SeveralUpscales, match="up and second"):
        plan(parallel)


def test_an_upscale_whose_result_nobody_saves() -> None:
    alone = without(photo(), "save")
    with pytest.raises(PromptHasNoOutput):
        plan(alone)
    with pytest.raises(UpscaleUnused, match="upscale up"):
        plan({**alone, "again": node("DistributedCollector", images=out("up"))})
    job = plan({**alone, "show": node("PreviewImage", images=out("scale"))})
    assert job.tiles is None and [item.kind for item in job.items] == ["whole"]
    assert job.warnings == ("upscale up is linked to nothing and is left out",)


def test_a_bypassed_or_muted_upscale_is_no_upscale() -> None:
    bypassed = {**without(photo(), "up"), "save": node("SaveImage", images=out("scale"))}
    assert plan(bypassed).tiles is None
    with_muted_user = {**photo(), "show": node("PreviewImage")}
    assert plan(with_muted_user).items[0].targets == ("show", "scale~0")


# -- ids, leftovers, requirements -----------------------------------------------------------------------------------------
@pytest.mark.parametrize("taken", ["up~pixels", "up~model", "up~sample", "up~given", "scale~0"])
def test_an_id_that_the_cut_needs_is_refused(taken: str) -> None:
    with pytest.raises(PromptMalformed, match=taken):
        plan({**photo(), taken: node("LoadImage", image="x.png"), "show": node("PreviewImage", images=out(taken))})


def test_a_link_to_an_output_that_an_upscale_lacks_is_refused() -> None:
    with pytest.raises(PromptMalformed, match="output 1"):
        plan({**photo(), "show": node("PreviewImage", images=out("up", 1))})


def test_leftovers_of_other_versions_change_nothing() -> None:
    old = {
        "control_after_generate": "randomize", "multi_job_id": "j", "is_worker": True, "worker_id": "2", "tile_indices": "0,1",
        "dynamic_threshold": 8, "enabled_worker_ids": "[]", "master_url": "http://x", "static_distribution": True,
    }  # fmt: skip
    plain, busy = plan(photo()), plan(photo(**old))
    assert (plain.prompts, plain.items, plain.tiles) == (busy.prompts, busy.items, busy.tiles)


def test_flattened_subgraph_ids_are_cut_like_any_other() -> None:
    names = {"up": "7:3", "scale": "7:1"}

    def renamed(value: Any) -> Any:
        return [names.get(value[0], value[0]), value[1]] if isinstance(value, list) else value

    prompt = {
        names.get(node_id, node_id): node(one["class_type"], **{key: renamed(value) for key, value in one["inputs"].items()})
        for node_id, one in photo().items()
    }
    job = plan(prompt)
    assert (tiles(job).node_id, tiles(job).image.node_id) == ("7:3", "7:1~0")
    assert {"7:3", "7:3~sample"} <= set(stage(job, "tile"))


def test_a_worker_must_have_what_items_and_tiles_need_but_not_the_last_stage() -> None:
    job = plan(hinted(batch(tiled_decode=True), out("scale")), items=2)
    classes = set(job.requirement.node_classes)
    assert {"ImageScale", "Canny", "ControlNetApply", "VAEEncode", "VAEDecodeTiled", "KSampler", "EmptyLatentImage"} <= classes
    assert not {"SaveImage", "UltimateSDUpscaleDistributed", "DistributedTileModel"} & classes
    assert job.last_requirement is not None and job.last_requirement.node_classes == ("SaveImage",)


def test_the_names_of_samplers_and_models_bind_before_the_first_tile() -> None:
    needed = plan(photo(), known=False).requirement.choices
    assert ("KSampler", "sampler_name", "euler") in needed and ("CheckpointLoaderSimple", "ckpt_name", "a.safetensors") in needed


def test_without_workers_a_prompt_is_cut_by_well_known_names() -> None:
    job = plan(batch(), known=False, items=2)
    assert [item.kind for item in job.items] == ["generate", "generate", "prepare", "last"]


def test_input_files_of_every_stage_are_brought_along_once() -> None:
    prompt = {**photo(), "second": node("LoadImage", image="y.png"), "show": node("PreviewImage", images=out("load"))}
    prompt["save"]["inputs"]["mask"] = out("second", 1)
    assert sorted((file.node_id, file.name) for file in plan(prompt).input_files) == [("load", "x.png"), ("second", "y.png")]


def test_the_resume_key_covers_geometry_and_determinism() -> None:
    def key(**inputs: Any) -> str:
        return resume_key(plan(photo(**inputs)), input_hashes={}, versions={})

    changes: list[dict[str, Any]] = [
        {}, {"tile_width": 768}, {"tile_height": 768}, {"padding": 64}, {"mask_blur": 16}, {"force_uniform_tiles": False},
        {"mode": "chess"}, {"seam_fix": "band_pass"}, {"tile_seeds": "offset"}, {"seam_fix": "half_tile"}, {"seed": 43},
        {"denoise": 0.5}, {"deterministic": "same-class"},
    ]  # fmt: skip
    assert len({key(**change) for change in changes}) == len(changes)
    job = plan(photo())
    assert resume_key(job, input_hashes={}, versions={}) != resume_key(replace(job, tiles=None), input_hashes={}, versions={})


@pytest.mark.parametrize("rule", ["item_bytes", "item_pixels", "item_tiles", "level_shares", "plan_version"])
def test_the_resume_key_covers_what_divides_an_image_into_items(rule: str) -> None:
    job = plan(photo())
    other = replace(tiles(job), **{rule: getattr(tiles(job), rule) + 1})
    assert resume_key(job, input_hashes={}, versions={}) != resume_key(replace(job, tiles=other), input_hashes={}, versions={})
