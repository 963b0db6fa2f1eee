"""An item's prompt as one for a ComfyUI that has none of our nodes."""
from __future__ import annotations

from typing import Any

import pytest

from distributed_comfy.engine.attach.captures import CLAIM_MARK
from distributed_comfy.engine.attach.supplies import Supply
from distributed_comfy.engine.attach.translation import Translation, translate
from distributed_comfy.errors import ValidationRefused, WorkerLacks
from distributed_comfy.messages import Prompt, RunRequest
from distributed_comfy.workflow.classes import OWN_CLASSES
from distributed_comfy.workflow.graph import Link
from tests.prompts import node, out
from tests.unit.attach_listing import about, listing

CLAIM = "c1"
IMAGE = {"load": node("LoadImage", image="a.png")}


def translated(prompt: Prompt, *targets: str, supply: Any = None, found: Any = None) -> Translation:
    request = RunRequest(CLAIM, "job", 0, "generate", prompt, targets, prompt)
    return translate(request, found or listing(), supply or (lambda *_: pytest.fail("nothing is supplied")), "w1")


def test_a_sink_of_images_becomes_a_preview_that_runs_in_each_claim_and_a_count() -> None:
    got = translated({**IMAGE, "9": node("DistributedSink", claim_id=CLAIM, images=out("load"))}, "9")
    assert got.prompt["9~images~files"] == node("PreviewImage", images=["load", 0], **{CLAIM_MARK: CLAIM})
    assert got.prompt["9~images~shown"] == node("PreviewAny", source=["9~images~size", 2])
    assert got.targets == ("9~images~files", "9~images~shown")
    assert {got.origin[name] for name in got.prompt if name != "load"} == {"9"}
    assert "9" not in got.prompt


def test_a_comfyui_that_cannot_tell_sizes_gives_one_batch() -> None:
    got = translated({**IMAGE, "9": node("DistributedSink", images=out("load"))}, "9", found=listing("GetImageSize"))
    assert list(got.prompt) == ["load", "9~images~files"]


def test_masks_go_by_images_and_latents_by_files_of_the_claim() -> None:
    prompt = {
        **IMAGE, "latent": node("LoadLatent", latent="x.latent"),
        "9": node("DistributedSink", masks=out("load", 1), latents=out("latent")),
    }  # fmt: skip
    got = translated(prompt, "9")
    assert got.prompt["9~masks~files"]["inputs"]["images"] == ["9~masks~image", 0]
    assert got.prompt["9~masks~image"] == node("MaskToImage", mask=["load", 1])
    assert got.prompt["9~latents~files"] == node("SaveLatent", samples=["latent", 0], filename_prefix="distributed-comfy/c1/9-latents")
    assert [plan.kind for plan in got.captures] == ["MASK", "LATENT"]


def test_an_edge_is_captured_by_the_type_of_its_output() -> None:
    prompt = {**IMAGE, "size": node("GetImageSize", image=out("load")), "size~2": node("DistributedSink", value=out("size", 2))}
    got = translated(prompt, "size~2")
    (plan,) = got.captures
    assert (plan.kind, plan.shown, plan.files) == ("INT", "size~2~value~shown", "")


@pytest.mark.parametrize("slot", ["audio", "value"])
def test_audio_is_not_captured(slot: str) -> None:
    prompt = {"a": node("PackAudio"), "a~0": node("DistributedSink", **{slot: out("a")})}
    with pytest.raises(WorkerLacks, match="a way of capturing AUDIO"):
        translated(prompt, "a~0")


def test_a_source_is_replaced_by_what_is_supplied_for_each_slot() -> None:
    asked: list[tuple[str, str]] = []

    def supply(node_id: str, slot: str) -> Supply:
        asked.append((node_id, slot))
        return Supply({"9~images~0": node("LoadImage", image="x.tif")}, Link("9~images~0", 0))

    prompt = {
        "9": node("DistributedSource", claim_id=CLAIM, slots="images"), "inv": node("ImageInvert", image=out("9")),
        "save": node("SaveImage", images=out("inv"), filename_prefix="x"), "show": node("PreviewImage", images=out("9")),
    }  # fmt: skip
    got = translated(prompt, "save", "show", supply=supply)
    assert asked == [("9", "images")], "a feed is read once"
    assert got.prompt["inv"]["inputs"]["image"] == ["9~images~0", 0] == got.prompt["show"]["inputs"]["images"]
    assert "9" not in got.prompt


def test_a_number_is_written_into_the_inputs_that_it_feeds() -> None:
    prompt = {
        "s~0": node("DistributedSource", slots="value"), "k": node("KSampler", seed=out("s~0"), latent_image=out("l")),
        "l": node("LoadLatent", latent="x"), "sink": node("DistributedSink", latents=out("k")),
    }  # fmt: skip
    got = translated(prompt, "sink", supply=lambda *_: Supply(literal=2**63))
    assert got.prompt["k"]["inputs"]["seed"] == 2**63


def test_nothing_runs_behind_an_empty_feed() -> None:
    prompt = {
        **IMAGE, "9": node("DistributedSource", slots="images"), "inv": node("ImageInvert", image=out("9")),
        "save": node("SaveImage", images=out("inv"), filename_prefix="x"), "sink": node("DistributedSink", images=out("inv")),
        "other": node("PreviewImage", images=out("load")),
    }  # fmt: skip
    got = translated(prompt, "save", "sink", "other", supply=lambda *_: Supply(empty=True))
    assert list(got.prompt) == ["load", "other"] and got.targets == ("other",) and not got.captures


def test_an_output_of_a_collector_that_nothing_feeds_is_not_made_up() -> None:
    prompt = {"9": node("DistributedSource", slots="images"), "p": node("PreviewAny", source=out("9", 3))}
    with pytest.raises(WorkerLacks, match="a way of supplying an empty MASK"):
        translated(prompt, "p")


def test_a_collector_that_passes_through_goes_out_of_the_way() -> None:
    prompt = {
        **IMAGE, "c": node("DistributedCollector", images=out("load"), pass_through=True), "p": node("PreviewImage", images=out("c")),
    }  # fmt: skip
    got = translated(prompt, "p")
    assert got.prompt["p"]["inputs"]["images"] == ["load", 0] and "c" not in got.prompt


def test_a_model_name_is_shown_by_a_stock_node() -> None:
    got = translated({"n": node("DistributedModelName", text="a.safetensors")}, "n")
    assert got.prompt["n"]["class_type"] == "PreviewAny" and got.prompt["n"]["inputs"]["source"] == "a.safetensors"
    assert "n" not in got.origin, "what it shows is the user's"


def test_targets_write_into_the_folder_of_the_claim_or_are_marked_unless_a_pack_may_take_the_mark() -> None:
    prompt = {
        **IMAGE, "save": node("SaveImage", images=out("load"), filename_prefix="sub/pic"), "show": node("PreviewImage", images=out("load")),
        "pack": node("PackSaver", images=out("load")),
    }  # fmt: skip
    got = translated(prompt, "save", "show", "pack")
    assert got.prompt["save"]["inputs"]["filename_prefix"] == "distributed-comfy/c1/sub/pic"
    assert got.prompt["show"]["inputs"][CLAIM_MARK] == CLAIM
    assert got.prompt["pack"]["inputs"] == {"images": ["load", 0]}


def test_model_names_are_written_as_comfyuis_system_lists_them() -> None:
    prompt = {
        "vae": node("VAELoader", vae_name="sub/a.safetensors"), "l": node("LoadLatent", latent="x"),
        "d": node("VAEDecode", samples=out("l"), vae=out("vae")), "p": node("PreviewImage", images=out("d")),
    }  # fmt: skip
    assert translated(prompt, "p").prompt["vae"]["inputs"]["vae_name"] == "sub\\a.safetensors"


def test_what_no_target_needs_is_not_queued_and_the_request_stays_as_it_was() -> None:
    prompt = {**IMAGE, "p": node("PreviewImage", images=out("load")), "other": node("SaveImage", images=out("load"), filename_prefix="x")}
    assert list(translated(prompt, "p").prompt) == ["load", "p"]
    assert prompt["p"]["inputs"] == {"images": ["load", 0]}


def test_a_target_that_is_no_output_node_is_refused_before_anything_is_queued() -> None:
    with pytest.raises(ValidationRefused, match=r"node load \(LoadImage\) is no output node"):
        translated(IMAGE, "load")


@pytest.mark.parametrize("class_type", ["DistributedTileModel", "DistributedEmptyImage", "ImageBatchDivider"])
def test_our_other_nodes_are_refused_unless_comfyui_has_them(class_type: str) -> None:
    prompt = {"x": node(class_type), "p": node("PreviewImage", images=out("x"))}
    with pytest.raises(WorkerLacks, match=f"a way of running {class_type}"):
        translated(prompt, "p")
    found = listing(**{class_type: about({}, "IMAGE", module="custom_nodes.pack")})
    if class_type == "DistributedTileModel":
        with pytest.raises(WorkerLacks):
            translated(prompt, "p", found=found)
    else:
        assert translated(prompt, "p", found=found).prompt["x"] == node(class_type)


# -- with the node pack ------------------------------------------------------------------------------------------------------
def with_pack(prompt: Prompt, *targets: str) -> Translation:
    ours = {name: about({}, "IMAGE", output_node=name == "DistributedSink", module="custom_nodes.pack") for name in OWN_CLASSES}
    return translate(RunRequest(CLAIM, "job", 0, "last", prompt, targets, prompt), listing(**ours), None, "w1")


def test_where_comfyui_has_our_nodes_they_stay_and_its_own_outputs_write_into_the_folder_of_the_claim() -> None:
    prompt = {
        "c": node("DistributedSource", claim_id=CLAIM, slots="images"), "x": node("DistributedTileImage", image=out("c")),
        "9": node("DistributedSink", claim_id=CLAIM, images=out("x"), audio=out("c", 1)),
        "save": node("SaveImage", images=out("c"), filename_prefix="pic"),
    }  # fmt: skip
    got = with_pack(prompt, "9", "save")
    assert got.prompt["save"]["inputs"].pop("filename_prefix") == "distributed-comfy/c1/pic"
    prompt["save"]["inputs"].pop("filename_prefix")
    assert (got.prompt, got.captures, got.origin, got.targets) == (prompt, [], {}, ("9", "save"))


def test_a_collector_would_make_a_job_there_so_a_source_gives_what_it_makes_of_nothing() -> None:
    prompt = {
        **IMAGE, "c": node("DistributedCollector", images=out("load"), pass_through=True), "p": node("PreviewImage", images=out("c")),
        "m": node("MaskToImage", mask=out("c", 3)), "q": node("PreviewImage", images=out("m")),
    }  # fmt: skip
    got = with_pack(prompt, "p", "q")
    assert got.prompt["p"]["inputs"]["images"] == ["load", 0] and got.prompt["m"]["inputs"]["mask"] == ["c~nothing", 3]
    assert got.prompt["c~nothing"] == node("DistributedSource", claim_id="", slots="") and "c" not in got.prompt


def test_an_upscale_would_make_a_job_there_too_and_is_for_another_worker() -> None:
    with pytest.raises(WorkerLacks, match="a way of running UltimateSDUpscaleDistributed"):
        with_pack({"up": node("UltimateSDUpscaleDistributed"), "p": node("PreviewImage", images=out("up"))}, "p")
