"""The upscale node's contract with saved workflows, and the tile nodes' with planning."""
from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from distributed_comfy.engine.builtin.validation import check_prompt
from distributed_comfy.errors import UpscaleInputWrong, UpscaleUndistributed
from distributed_comfy.nodes.registry import DISPLAY_NAMES, node_classes
from distributed_comfy.nodes.tiles import (
    DistributedTileConditioning,
    DistributedTileImage,
    DistributedTileInputs,
    DistributedTileLatent,
    DistributedTileModel,
    DistributedTilePixels,
    DistributedTileRegions,
)
from distributed_comfy.nodes.upscale import UltimateSDUpscaleDistributed
from distributed_comfy.planning.upscale_inputs import CHOICES, REAL, WHOLE
from distributed_comfy.workflow.region import Region, TileTask, tasks_text
from tests.prompts import node, out
from tests.unit.test_node_classes import Board

SAVED = {
    "seed": 42, "steps": 20, "cfg": 8.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 0.5, "tile_width": 512,
    "tile_height": 512, "padding": 32, "mask_blur": 8, "force_uniform_tiles": True, "tiled_decode": False,
}  # fmt: skip
"""The widgets of a saved workflow in their order, less control_after_generate."""
REGION = Region(1024, 512, left=512, top=0, width=500, height=512, process_width=504, process_height=512)
PART = replace(REGION, canvas_frames=9, first_frame=4, frames=2)


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


def test_the_tile_nodes_hand_their_region_to_the_cropper_of_the_engine() -> None:
    class Cropper:
        def fill_up(self, pixels: Any, vae: Any) -> Any:
            assert vae == "v"
            return np.pad(pixels, ((0, 1), (0, 8), (0, 0), (0, 0)), mode="edge")

        def crop_conditioning(self, conditioning: Any, region: Region) -> Any:
            return "conditioning", conditioning, region

        def crop_model(self, model: Any, region: Region) -> Any:
            return "model", model, region

    classes: dict[str, Any] = node_classes(Board(), cropper=Cropper())
    assert classes["DistributedTileConditioning"]().crop("c", PART) == (("conditioning", "c", PART),)
    assert classes["DistributedTileModel"]().crop("m", REGION) == (("model", "m", REGION),)
    filled, region = classes["DistributedTilePixels"]().fill_up(np.zeros((2, 56, 64, 3)), PART, "v")
    assert filled.shape == (3, 64, 64, 3) and region == replace(PART, process_height=64, process_width=64)


def test_without_a_cropper_the_tile_nodes_change_nothing() -> None:
    model, conditioning = object(), [[None, {}]]
    assert DistributedTileModel().crop(model, REGION) == (model,)
    pixels, region = DistributedTilePixels().fill_up(model, REGION, object())
    assert pixels is model and region is REGION
    assert DistributedTileConditioning().crop(conditioning, REGION)[0] is conditioning


def test_the_tiles_of_an_item_become_lists_of_one_length() -> None:
    tasks = [TileTask(REGION), TileTask(PART, seed=2**64 - 1), TileTask(REGION, denoise=0.0)]
    found = DistributedTileRegions().read(tasks_text(tasks), 7, 0.4)
    assert found == ([REGION, PART, REGION], [7, 2**64 - 1, 7], [0.4, 0.4, 0.0])


def test_what_the_user_gives_to_tiles_is_handed_on_and_a_list_of_it_refused_with_its_name() -> None:
    given = {"model": ["m"], "denoise": [0.4], "vae": []}
    assert DistributedTileInputs().hand_on(["up~given"], **given) == (["m"], [], [], [], [], [], [], [], [], [0.4])
    with pytest.raises(UpscaleInputWrong, match=r"positive of upscale 3:up .* is a list of 2 values; it must be one value"):
        DistributedTileInputs().hand_on(["3:up~given"], **given, positive=["a", "b"])


@pytest.mark.parametrize(
    ("shape", "region", "places"),
    [
        ((2, 4, 8, 8), PART, [4, 5]), ((1, 4, 8, 8), replace(PART, frames=1), [4]), ((3, 4, 8, 8), REGION, [0, 1, 2]),
        ((1, 4, 8, 8), REGION, None), ((1, 4, 2, 8, 8), PART, None),
    ],
)  # fmt: skip
def test_a_latent_is_told_its_frames_unless_it_is_one_alone_or_has_time(shape: Any, region: Region, places: list[int] | None) -> None:
    latent = {"samples": np.zeros(shape), "type": "audio"}
    (found,) = DistributedTileLatent().place(latent, region)
    assert found == ({**latent, "batch_index": places} if places else latent) and "batch_index" not in latent


def test_what_was_added_to_a_tile_is_cut_off_behind_the_vae() -> None:
    crop, filled = np.zeros((2, 56, 64, 4)), np.zeros((5, 64, 64, 4))
    image = np.random.default_rng(1).random((5, 64, 64, 3))
    (found,) = DistributedTileImage().cut(image, crop, filled)
    assert np.array_equal(found, image[:2, :56, :64])


@pytest.mark.parametrize("shape", [(5, 128, 128, 3), (4, 64, 64, 3), (5, 64, 56, 3), (2, 56, 64, 3)])
def test_a_tile_that_came_in_a_size_of_its_own_is_not_cut_so_that_the_master_refuses_it(shape: tuple[int, ...]) -> None:
    image = np.zeros(shape)
    assert DistributedTileImage().cut(image, np.zeros((2, 56, 64, 3)), np.zeros((5, 64, 64, 3)))[0] is image


def test_a_tile_to_which_nothing_was_added_stays_the_object_that_it_is() -> None:
    crop, image = np.zeros((2, 56, 64, 3)), np.zeros((2, 112, 128, 3))
    assert DistributedTileImage().cut(image, crop, crop)[0] is image


def test_all_tile_nodes_are_internal() -> None:
    names = [name for name in node_classes(Board()) if name.startswith("DistributedTile")]
    classes: dict[str, Any] = node_classes(Board())
    assert len(names) == 7 and {classes[name].CATEGORY for name in names} == {"distributed/internal"}
    assert all("(internal)" in DISPLAY_NAMES[name] for name in names)
