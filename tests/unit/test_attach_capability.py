"""What is said about a running ComfyUI, and which work it therefore gets."""
from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from distributed_comfy.engine.attach.capability import describe
from distributed_comfy.engine.attach.pack_words import PackFacts
from distributed_comfy.messages import Capability
from distributed_comfy.planning.facts import ClassFacts
from distributed_comfy.planning.plan import PlanOptions, plan_job
from distributed_comfy.planning.requirements import capability_hash, lacks, services_of
from distributed_comfy.workflow.parse import parse_prompt
from tests.prompts import node, out
from tests.unit.attach_listing import about, listing
from tests.upscale_prompts import photo

STATS: dict[str, Any] = {
    "system": {
        "comfyui_version": "0.3.64", "pytorch_version": "2.8.0+cu128",
        "argv": ["main.py", "--listen", "0.0.0.0", "--port", "8188", "--fp8_e4m3fn-text-enc", "--output-directory", "/data/out"],
    },
    "devices": [{"name": "cuda:0 NVIDIA GeForce RTX 4090 : cudaMallocAsync", "type": "cuda", "vram_total": 24, "vram_free": 20}],
}  # fmt: skip


def capability(*without: str, **extra: Any) -> Capability:
    return describe(listing(*without, **extra), STATS, ["t"])


def test_the_device_class_is_one_of_its_own_and_names_what_changes_results() -> None:
    found = capability()
    where = "attach: cuda:0 NVIDIA GeForce RTX 4090 : cudaMallocAsync"
    assert found.device_class == f"{where}, torch 2.8.0+cu128, ComfyUI 0.3.64, --fp8_e4m3fn-text-enc, images of 8 bits"
    assert (found.engine, found.engine_version, found.tags) == ("attach", "0.3.64", ("t",))


def test_classes_lists_files_and_limits_are_read_as_the_other_engine_reads_them() -> None:
    found = capability()
    assert found.choice_lists[found.choices["VAELoader"]["vae_name"]] == ("sub/a.safetensors", "b.safetensors")
    assert found.file_inputs == {"LoadImage": {"image": "input"}, "LoadLatent": {"latent": "input"}}
    assert found.seed_limits["KSampler"] == {"seed": str(2**64 - 1)}
    assert found.output_types["LoadImage"] == ("IMAGE", "MASK") and "SaveImage" in found.output_classes
    assert "LoadImage" not in found.choices


def test_a_service_is_offered_where_all_stock_nodes_for_it_are_there() -> None:
    services = capability().services or ()
    assert {f"capturing {kind}" for kind in ("IMAGE", "MASK", "LATENT", "INT", "FLOAT", "STRING", "BOOLEAN")} <= set(services)
    assert {f"supplying {kind}" for kind in ("IMAGE", "MASK", "LATENT", "INT", "STRING")} <= set(services)
    assert not [service for service in services if "AUDIO" in service]
    assert "capturing MASK" not in (capability("MaskToImage").services or ())
    assert "running ImageBatchDivider" in (capability(ImageBatchDivider=about({}, "IMAGE")).services or ())


def test_our_node_pack_is_told_where_it_is_there_and_a_foreign_class_of_its_name_is_not_taken_for_it() -> None:
    ours = {**about({}, output_node=True), "category": "distributed/internal"}
    assert listing(DistributedSink=ours).has_pack
    assert not listing().has_pack and not listing(DistributedSink=about({}, output_node=True)).has_pack


def test_with_the_pack_nothing_is_lacking_and_results_compare_with_those_of_workers_with_such_a_tree() -> None:
    found = describe(listing(), STATS, [], PackFacts("1.0", True, "RTX 4090, driver 1, torch 2, ComfyUI 0.3.64"))
    assert (found.services, found.device_class) == (None, "RTX 4090, driver 1, torch 2, ComfyUI 0.3.64")


def test_what_the_services_are_makes_another_capability() -> None:
    assert capability_hash(capability()) != capability_hash(replace(capability(), services=None))


def plan(prompt: dict[str, Any], **options: Any) -> Any:
    return plan_job(parse_prompt(prompt), PlanOptions(**options), [capability()])


BATCH = {
    "seed": node("DistributedSeed", seed=1), "l": node("LoadLatent", latent="x.latent"),
    "k": node("KSampler", seed=out("seed"), latent_image=out("l")), "vae": node("VAELoader", vae_name="b.safetensors"),
    "d": node("VAEDecode", samples=out("k"), vae=out("vae")), "c": node("DistributedCollector", images=out("d")),
    "save": node("SaveImage", images=out("c"), filename_prefix="x"),
}  # fmt: skip


def test_an_ordinary_job_and_its_last_stage_are_for_an_attached_comfyui_too() -> None:
    planned = plan(BATCH, items=3)
    assert planned.requirement.services == ("capturing IMAGE",)
    assert planned.last_requirement.services == ("supplying IMAGE",)
    assert lacks(planned.requirement, capability()) == [] == lacks(planned.last_requirement, capability())
    assert lacks(planned.requirement, replace(capability(), services=None)) == [], "an engine with our nodes does everything"


def test_a_job_that_collects_audio_is_not() -> None:
    planned = plan({**BATCH, "c": node("DistributedCollector", images=out("d"), audio=out("a")), "a": node("PackAudio")}, items=2)
    assert lacks(planned.requirement, capability()) == ["a way of capturing AUDIO"]


def test_an_edge_is_asked_for_by_the_type_it_carries_on_both_sides() -> None:
    prompt = {**BATCH, "c2": node("PreviewAny", source=out("k")), "mix": node("ImageBatch", image1=out("c"), image2=out("d"))}
    prompt["save"] = node("SaveImage", images=out("mix"), filename_prefix="x")
    planned = plan(prompt, items=2)
    assert planned.edges == ("d~0",)
    assert planned.requirement.services == ("capturing IMAGE",) and planned.last_requirement.services == ("supplying IMAGE",)


def test_the_tiles_of_an_upscale_are_not_for_it() -> None:
    planned = plan_job(parse_prompt(photo()), PlanOptions(), [])
    assert "a way of running DistributedTileModel" in lacks(planned.requirement, capability())


@pytest.mark.parametrize("kind", ["", "CLIP"])
def test_a_value_of_a_type_that_is_not_carried_is_named(kind: str) -> None:
    prompt = {"x": node("Loader"), "x~0": node("DistributedSink", value=out("x"))}
    facts = ClassFacts([replace(capability(), node_classes=("Loader",), output_types={"Loader": (kind,)} if kind else {})])
    assert services_of(prompt, {}, facts) == (f"capturing {kind or 'a value of unknown type'}",)
