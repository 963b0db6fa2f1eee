"""The upscale node's contract with saved workflows, and the tile nodes' with planning."""
from __future__ import annotations

from typing import Any

import pytest

from distributed_comfy.engine.builtin.validation import check_prompt
from distributed_comfy.errors import UpscaleUndistributed
from distributed_comfy.nodes.registry import DISPLAY_NAMES, node_classes
from distributed_comfy.nodes.tiles import DistributedTileConditioning, DistributedTileModel
from distributed_comfy.nodes.upscale import UltimateSDUpscaleDistributed
from distributed_comfy.planning.upscale_inputs import CHOICES, REAL, WHOLE
from distributed_comfy.workflow.region import Region
from tests.prompts import node, out
from tests.unit.test_node_classes import Board

SAVED = {
    "seed": 42, "steps": 20, "cfg": 8.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 0.5, "tile_width": 512,
    "tile_height": 512, "padding": 32, "mask_blur": 8, "force_uniform_tiles": True, "tiled_decode": False,
}  # fmt: skip
"""The widgets of a saved workflow in their order, less control_after_generate."""
REGION = {
    "canvas_width": 1024, "canvas_height": 512, "left": 512, "top": 0, "width": 500, "height": 512, "process_width": 504,
    "process_height": 512,
}  # fmt: skip


class Source:
    """Gives each of the five links of the upscale node."""

    RETURN_TYPES = ("IMAGE", "MODEL", "CONDITIONING", "CONDITIONING", "VAE")
    FUNCTION = "run"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {}}


class Keep:
    """An output node."""

    RETURN_TYPES = ()
    FUNCTION = "run"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"images": ("IMAGE",)}}


def validated(**inputs: Any) -> list[str]:
    links = {name: out("1", slot) for slot, name in enumerate(("upscaled_image", "model", "positive", "negative", "vae"))}
    prompt = {
        "1": node("Source"), "2": node("UltimateSDUpscaleDistributed", **links, **inputs), "3": node("Keep", images=out("2")),
    }  # fmt: skip
    return check_prompt(prompt, ("3",), {**node_classes(Board()), "Source": Source, "Keep": Keep}, worker="w")


def test_the_upscale_node_keeps_its_contract() -> None:
    declared = UltimateSDUpscaleDistributed.INPUT_TYPES()
    required = declared["required"]
    assert list(required) == ["upscaled_image", "model", "positive", "negative", "vae", *SAVED]
    assert {name: kind[1]["default"] for name, kind in required.items() if len(kind) > 1 and name != "seed"} == {
        name: value for name, value in SAVED.items() if name not in ("seed", "sampler_name", "scheduler")
    }
    assert (required["seed"][1]["max"], required["tile_width"][1]["min"], required["tile_width"][1]["max"]) == (2**64 - 1, 64, 2048)
    assert (required["padding"][1]["max"], required["mask_blur"][1]["max"]) == (256, 256)
    assert {name: kind[1]["default"] for name, kind in declared["hidden"].items()} == {
        "multi_job_id": "", "is_worker": False, "master_url": "", "enabled_worker_ids": "[]", "worker_id": "", "tile_indices": "",
        "dynamic_threshold": 8,
    }  # fmt: skip
    assert (UltimateSDUpscaleDistributed.RETURN_TYPES, UltimateSDUpscaleDistributed.CATEGORY) == (("IMAGE",), "image/upscaling")
    assert DISPLAY_NAMES["UltimateSDUpscaleDistributed"] == "Ultimate SD Upscale Distributed (No Upscale)"


def test_inputs_of_our_own_come_after_them_with_a_line_on_what_they_trade() -> None:
    optional = UltimateSDUpscaleDistributed.INPUT_TYPES()["optional"]
    assert list(optional) == [
        "mode", "seam_fix", "seam_fix_denoise", "seam_fix_width", "seam_fix_mask_blur", "seam_fix_padding", "tile_seeds", "deterministic",
    ]  # fmt: skip
    assert all("\n" not in kind[1]["tooltip"] and kind[1]["tooltip"] for kind in optional.values())
    assert optional["mode"][0] == ["chess", "linear", "independent"] and optional["tile_seeds"][0] == ["same", "offset"]


def test_planning_takes_the_same_values_and_defaults() -> None:
    declared = UltimateSDUpscaleDistributed.INPUT_TYPES()
    inputs = {**declared["required"], **declared["optional"]}
    assert {name: tuple(kind[0]) for name, kind in inputs.items() if name in CHOICES} == CHOICES
    limits = {name: (kind[1]["default"], kind[1]["min"], kind[1]["max"]) for name, kind in inputs.items() if "min" in kind[-1]}
    planned = {**WHOLE, **REAL}
    assert {name: limits[name][1:] for name in planned} == {name: known[1:] for name, known in planned.items()}
    assert {name: limits[name][0] for name in planned if name != "seed"} == {
        name: known[0] for name, known in planned.items() if name != "seed"
    }  # fmt: skip


@pytest.mark.parametrize("extra", [
    {}, {"multi_job_id": "", "is_worker": False, "tile_indices": ""}, {"mode": "chess", "seam_fix": "half_tile", "deterministic": "any"},
])  # fmt: skip
def test_prompts_of_saved_workflows_validate_with_and_without_our_inputs(extra: dict[str, Any]) -> None:
    assert validated(**SAVED, **extra) == ["1", "2", "3"]


def test_undistributed_it_says_that_it_runs_through_the_cluster_only() -> None:
    with pytest.raises(UpscaleUndistributed, match="through the cluster"):
        UltimateSDUpscaleDistributed().run(**SAVED)


def test_an_engine_lists_its_own_samplers() -> None:
    class Own:
        SAMPLERS = ("mine",)
        SCHEDULERS = ("also mine",)

    bound: Any = node_classes(Board(), sampling=Own)["UltimateSDUpscaleDistributed"]
    required = bound.INPUT_TYPES()["required"]
    assert (required["sampler_name"], required["scheduler"]) == ((["mine"],), (["also mine"],))


def test_the_tile_nodes_hand_their_numbers_to_the_cropper_of_the_engine() -> None:
    class Cropper:
        def crop_conditioning(self, conditioning: Any, region: Region) -> Any:
            return "conditioning", conditioning, region

        def crop_model(self, model: Any, region: Region) -> Any:
            return "model", model, region

    classes: dict[str, Any] = node_classes(Board(), cropper=Cropper())
    frames = {"canvas_frames": 9, "first_frame": 4, "frames": 2}
    conditioning = classes["DistributedTileConditioning"]().crop(conditioning="c", **REGION, **frames)
    assert conditioning == (("conditioning", "c", Region(**REGION, **frames)),)
    assert classes["DistributedTileModel"]().crop(model="m", **REGION) == (("model", "m", Region(**REGION)),)


def test_without_a_cropper_the_tile_nodes_change_nothing() -> None:
    model, conditioning = object(), [[None, {}]]
    assert DistributedTileModel().crop(model=model, **REGION) == (model,)
    assert DistributedTileConditioning().crop(conditioning=conditioning, **REGION)[0] is conditioning


@pytest.mark.parametrize("node_class", [DistributedTileConditioning, DistributedTileModel])
def test_the_tile_nodes_require_the_whole_region_and_no_frames(node_class: Any) -> None:
    declared = node_class.INPUT_TYPES()
    assert list(declared["required"])[1:] == list(REGION)
    assert list(declared["optional"]) == ["canvas_frames", "first_frame", "frames"]
    assert node_class.CATEGORY == "distributed/internal"
