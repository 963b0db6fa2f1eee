"""What an upscale's inputs may be, and what is said about those that cannot work."""
from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distributed_comfy.errors import UpscaleInputWrong
from distributed_comfy.nodes.upscale import UltimateSDUpscaleDistributed
from distributed_comfy.planning import upscale_inputs
from distributed_comfy.planning.facts import ClassFacts
from distributed_comfy.planning.upscale_inputs import UpscaleInputs, read_upscale
from distributed_comfy.workflow.graph import Graph
from tests.prompts import node, out, without
from tests.upscale_prompts import batch, photo, plan, worker
from tiler.options import SeamFix, TileOptions, check_options

SEAMS = {"none": "none", "band_pass": "band", "half_tile": "half_tile", "half_tile_intersections": "half_tile_intersections"}


def read(**inputs: Any) -> UpscaleInputs:
    return read_upscale(Graph(photo(**inputs)), "up", ClassFacts([worker()]))


def without_widget(name: str) -> UpscaleInputs:
    prompt = photo()
    prompt["up"] = node(prompt["up"]["class_type"], **{key: value for key, value in prompt["up"]["inputs"].items() if key != name})
    return read_upscale(Graph(prompt), "up", ClassFacts([worker()]))


# -- the same contract as the node ----------------------------------------------------------------------------------------
def test_planning_and_the_node_agree_on_every_range_and_default() -> None:
    declared = UltimateSDUpscaleDistributed.INPUT_TYPES()
    inputs = {**declared["required"], **declared["optional"]}
    for name, (default, least, most) in {**upscale_inputs.WHOLE, **upscale_inputs.REAL}.items():
        options = inputs[name][1]
        assert (options["min"], options["max"]) == (least, most), name
        assert default is None or options["default"] == default, name
    for name, words in upscale_inputs.CHOICES.items():
        assert tuple(inputs[name][0]) == words and inputs[name][1]["default"] == words[0]
    assert {name: inputs[name][1]["default"] for name in upscale_inputs.SWITCHES} == upscale_inputs.SWITCHES
    known = {*upscale_inputs.LINKED, *upscale_inputs.SAMPLING, *upscale_inputs.WHOLE, *upscale_inputs.REAL, *upscale_inputs.SWITCHES}
    assert known | set(upscale_inputs.CHOICES) == set(inputs)


@settings(max_examples=200)
@given(
    sides=st.tuples(st.integers(64, 2048), st.integers(64, 2048)), padding=st.integers(0, 256), blur=st.integers(0, 256),
    seam=st.sampled_from(sorted(SEAMS)), seam_numbers=st.tuples(st.integers(8, 2048), st.integers(0, 256), st.integers(0, 256)),
)  # fmt: skip
def test_what_is_accepted_here_can_be_tiled(
    sides: tuple[int, int], padding: int, blur: int, seam: str, seam_numbers: tuple[int, int, int]
) -> None:
    names = ("seam_fix_width", "seam_fix_mask_blur", "seam_fix_padding")
    try:
        found = read(
            tile_width=sides[0], tile_height=sides[1], padding=padding, mask_blur=blur, seam_fix=seam,
            **dict(zip(names, seam_numbers, strict=True)),
        ).geometry  # fmt: skip
    except UpscaleInputWrong:
        return
    fix = SeamFix(
        SEAMS[found.seam_fix], width=found.seam_fix_width, feather=found.seam_fix_mask_blur, padding=found.seam_fix_padding,
        denoise=found.seam_fix_denoise,
    )  # type: ignore[arg-type]  # fmt: skip
    check_options(TileOptions(found.tile_width, found.tile_height, found.padding, found.mask_blur, found.uniform, found.mode, fix))


@pytest.mark.parametrize("seam", sorted(SEAMS))
def test_the_defaults_are_accepted_with_every_seam_fix(seam: str) -> None:
    geometry = read(seam_fix=seam).geometry
    assert (geometry.seam_fix, geometry.seam_fix_mask_blur, geometry.mode, geometry.tile_seeds) == (seam, 8, "chess", "same")


# -- values -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("denoise", 1.5, "a number from 0 to 1"), ("denoise", -0.1, "a number from 0 to 1"), ("denoise", "much", "a number"),
        ("denoise", True, "a number"), ("cfg", 101, "from 0 to 100"), ("steps", 0, "from 1 to 10000"), ("steps", 2.5, "a whole number"),
        ("tile_width", 56, "from 64 to 2048"), ("tile_height", 4096, "from 64 to 2048"), ("padding", -8, "from 0 to 256"),
        ("padding", 300, "from 0 to 256"), ("mask_blur", 257, "from 0 to 256"), ("seed", -1, "a whole number from 0"),
        ("seed", 2**64, "to 18446744073709551615"), ("seed", True, "a whole number"), ("seed", None, "a whole number"),
        ("sampler_name", None, "KSampler lists"), ("scheduler", 3, "KSampler lists"), ("mode", "spiral", "chess, linear, independent"),
        ("seam_fix", "glue", "band_pass"), ("tile_seeds", "random", "same, offset"), ("deterministic", "very", "any, same-class"),
        ("force_uniform_tiles", "maybe", "true or false"), ("tiled_decode", 7, "true or false"), ("padding", [], "a whole number"),
    ],
)  # fmt: skip
def test_a_value_that_cannot_work_is_refused_with_its_name_and_range(name: str, value: Any, expected: str) -> None:
    with pytest.raises(UpscaleInputWrong, match=expected) as caught:
        read(**{name: value})
    assert (caught.value.node_id, caught.value.input) == ("up", name)


def test_a_blur_wider_than_the_tile_is_refused_with_the_tiles_size() -> None:
    with pytest.raises(UpscaleInputWrong, match="from 0 to 128, the tile's shorter side being 128"):
        read(tile_width=128, mask_blur=136)
    assert read(tile_width=128, mask_blur=128).geometry.mask_blur == 128


def test_seams_that_would_meet_are_refused() -> None:
    with pytest.raises(UpscaleInputWrong, match="seam_fix_width"):
        read(tile_width=64, seam_fix="band_pass", seam_fix_width=72)
    with pytest.raises(UpscaleInputWrong, match="from 0 to 0, with tiles of 64 and strips of 64"):
        read(tile_width=64, seam_fix="band_pass")
    with pytest.raises(UpscaleInputWrong, match="half of the tile's shorter side"):
        read(tile_width=64, seam_fix="half_tile", seam_fix_mask_blur=40)
    assert read(tile_width=64, seam_fix="none").geometry.seam_fix_width == 64


@pytest.mark.parametrize("denoise", [0, 1, 0.0, 1.0, "0.35"])
def test_denoise_may_be_nothing_and_all(denoise: Any) -> None:
    assert read(denoise=denoise).geometry.denoise == float(denoise)


def test_numbers_in_quotes_and_switches_in_words_are_read_as_meant() -> None:
    found = read(tile_width="768", padding=16.0, force_uniform_tiles="False", tiled_decode="true", seed=str(2**64 - 1))
    assert (found.geometry.tile_width, found.geometry.padding, found.geometry.uniform, found.tiled_decode) == (768, 16, False, True)
    assert found.seed == "18446744073709551615"


@pytest.mark.parametrize("name", ["steps", "cfg", "denoise", "tile_width", "padding", "mask_blur", "force_uniform_tiles", "tiled_decode"])
def test_what_an_old_file_lacks_is_the_nodes_default(name: str) -> None:
    default = UltimateSDUpscaleDistributed.INPUT_TYPES()["required"][name][1]["default"]
    assert without_widget(name) == read(**{name: default})


# -- links --------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("name", "kind"), sorted(upscale_inputs.LINKED.items()))
def test_a_link_that_is_missing_or_of_another_type_is_refused(name: str, kind: str) -> None:
    with pytest.raises(UpscaleInputWrong, match=f"{name} .* is missing; it must be linked to a node that gives {kind}"):
        without_widget(name)
    other = out("ckpt", 1)
    with pytest.raises(UpscaleInputWrong, match=rf"linked to CLIP of node ckpt \(CheckpointLoaderSimple\); it must be linked to {kind}"):
        read(**{name: other})


@pytest.mark.parametrize("slot", [1, 2, 3])
def test_only_the_images_of_a_collector_can_be_upscaled(slot: int) -> None:
    with pytest.raises(UpscaleInputWrong, match="of collector collect"):
        plan(batch(image=out("collect", slot)))


def test_images_of_a_collector_that_collects_none_cannot_be_upscaled() -> None:
    prompt = batch(image="collect")
    prompt["collect"]["inputs"] = {"latents": out("sample")}
    with pytest.raises(UpscaleInputWrong, match="linked to images of collector collect"):
        plan(prompt)


def test_geometry_from_a_node_that_only_the_run_can_ask_is_refused() -> None:
    prompt = {**photo(tile_width=out("size")), "size": node("GetImageSize", image=out("scale"))}
    with pytest.raises(UpscaleInputWrong, match=r"linked to node size \(GetImageSize\), which gives it only .* must be typed in"):
        plan(prompt)
    with pytest.raises(UpscaleInputWrong, match="typed in where tile_seeds is offset"):
        plan({**photo(seed=out("dice"), tile_seeds="offset"), "dice": node("RandomInt")})


def test_geometry_from_a_primitive_or_a_distributed_value_is_read() -> None:
    prompt = {**photo(tile_width=out("number"), padding=out("value")), "number": node("PrimitiveInt", value=768)}
    job = plan({**prompt, "value": node("DistributedValue", default_value=64, worker_values="{}")})
    assert job.tiles is not None
    assert (job.tiles.geometry.tile_width, job.tiles.geometry.padding) == (768, 64)


def test_nothing_is_asked_of_an_upscale_that_leads_nowhere() -> None:
    broken = without(photo(denoise=7), "save")
    assert plan({**broken, "show": node("PreviewImage", images=out("load"))}).tiles is None
