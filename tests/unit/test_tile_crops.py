"""Pictures, areas and boxes cut to a tile, against the same done by hand to the whole canvas."""
from __future__ import annotations

import gc
import logging
import weakref
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import interpolate, pad

from distributed_comfy.engine.comfyui.crops import ComfyTileCropper
from distributed_comfy.engine.comfyui.crops.areas import WHOLE, crop_area, crop_boxes
from distributed_comfy.engine.comfyui.crops.controls import ControlCrops
from distributed_comfy.engine.comfyui.crops.planes import ENCODED, HINT, MASK, REFERENCE, SMOOTH_HINT, crop_planes
from distributed_comfy.workflow.region import Region

INNER = Region(512, 384, left=128, top=64, width=256, height=192, process_width=256, process_height=192)
"""Of a canvas of 512 x 384; all of it on the grid of latents."""
CORNER = Region(500, 380, left=244, top=188, width=256, height=192, process_width=256, process_height=192)
"""The lower right one of a canvas that is no multiple of 8."""
SMALL = Region(100, 60, left=0, top=0, width=100, height=60, process_width=104, process_height=64)
"""A canvas smaller than its tile."""
REGIONS = [INNER, CORNER, SMALL]


def numbered(*shape: int) -> torch.Tensor:
    """Every pixel another number, exact in float32."""
    count = 1
    for length in shape:
        count *= length
    return torch.arange(float(count)).reshape(shape)


def by_hand(whole: torch.Tensor, region: Region) -> torch.Tensor:
    """The crop of planes that have the size of the canvas, edges repeated."""
    box = whole[..., region.top : region.top + region.height, region.left : region.left + region.width]
    return pad(box, (0, region.process_width - region.width, 0, region.process_height - region.height), mode="replicate")


@pytest.mark.parametrize("region", REGIONS)
@pytest.mark.parametrize("kind", [HINT, SMOOTH_HINT, MASK, ENCODED])
def test_a_picture_of_the_canvas_size_is_cut_as_the_pixels_are(region: Region, kind: Any) -> None:
    whole = numbered(2, 3, region.canvas_height, region.canvas_width)
    assert torch.equal(crop_planes(whole, region, kind), by_hand(whole, region))


@pytest.mark.parametrize(("size", "box"), [
    ((192, 256), (32, 64, 96, 128)), ((768, 1024), (128, 256, 384, 512)), ((48, 64), (8, 16, 24, 32)), ((6, 8), (1, 2, 3, 4)),
])  # fmt: skip
def test_a_hint_of_another_scale_is_cut_between_its_own_pixels(size: tuple[int, int], box: tuple[int, int, int, int]) -> None:
    whole = numbered(1, 3, *size)
    top, left, height, width = box
    assert torch.equal(crop_planes(whole, INNER, HINT), whole[..., top : top + height, left : left + width])


@pytest.mark.parametrize("region", REGIONS)
@pytest.mark.parametrize("size", [(192, 256), (100, 100), (333, 517), (47, 63), (1000, 400), (5, 7), (61, 640)])
def test_where_that_is_not_possible_it_is_what_comfyui_shows_of_the_whole(region: Region, size: tuple[int, int]) -> None:
    hint = numbered(1, 2, *size)
    canvas = interpolate(centred(hint, region), size=(region.canvas_height, region.canvas_width), mode="nearest-exact")
    crop = interpolate(crop_planes(hint, region, HINT), size=(region.process_height, region.process_width), mode="nearest-exact")
    assert torch.equal(crop, by_hand(canvas, region))


def centred(planes: torch.Tensor, region: Region) -> torch.Tensor:
    """Cut to the aspect of the canvas round the centre."""
    height, width = planes.shape[-2:]
    aspect = region.canvas_width / region.canvas_height
    if width / height > aspect:
        cut = round((width - width * (aspect / (width / height))) / 2)
        return planes[..., cut : width - cut]
    cut = round((height - height * ((width / height) / aspect)) / 2)
    return planes[..., cut : height - cut, :]


@pytest.mark.parametrize("region", [CORNER, SMALL])
@pytest.mark.parametrize("size", [(20, 30), (3, 2), (1, 9)])
def test_a_coarse_mask_is_stretched_over_the_canvas_and_smooth(region: Region, size: tuple[int, int]) -> None:
    mask = torch.rand((2, *size), generator=torch.Generator().manual_seed(1))
    canvas = interpolate(mask[:, None], size=(region.canvas_height, region.canvas_width), mode="bilinear")
    assert torch.allclose(crop_planes(mask, region, MASK)[:, None], by_hand(canvas, region), atol=1e-6)


@pytest.mark.parametrize(("size", "error"), [
    ((384, 512), 0), ((192, 256), 0), ((48, 64), 0), ((24, 32), 1e-6), ((20, 30), 0.004), ((333, 517), 0.01),
])  # fmt: skip
def test_on_the_grid_of_latents_a_mask_gives_the_latents_it_gives_the_canvas(size: tuple[int, int], error: float) -> None:
    mask = interpolate(torch.rand((1, 1, 6, 8), generator=torch.Generator().manual_seed(1)), size=size, mode="bicubic")[0]
    expected = interpolate(mask[:, None], size=(48, 64), mode="bilinear")[..., 8:32, 16:48]
    ours = interpolate(crop_planes(mask, INNER, MASK)[:, None], size=(24, 32), mode="bilinear")
    # Between two latents a mask of uneven scale is interpolated twice, which counts only where its slope changes.
    assert float((ours - expected).abs().max()) <= error


def test_latents_are_cut_on_their_own_grid() -> None:
    latent = numbered(1, 16, 48, 64)
    assert torch.equal(crop_planes(latent, INNER, ENCODED), latent[..., 8:32, 16:48])
    assert torch.equal(crop_planes(latent, INNER, REFERENCE), latent[..., 8:32, 16:48])
    video = numbered(1, 4, 3, 24, 32)
    assert torch.equal(crop_planes(video, INNER, ENCODED), video[..., 4:16, 8:24]), "16 pixels to one, and time"


def test_latents_of_an_uneven_canvas_begin_where_the_encoder_began() -> None:
    latent = numbered(1, 4, 47, 62)  # of 376 x 496: two pixels left out at each side
    crop = crop_planes(latent, CORNER, ENCODED)
    assert crop.shape == (1, 4, 24, 32)
    # Canvas pixel 244 is pixel 242 of what was encoded: latent 30.25, so a quarter of the next one; rows: 186 / 8 = 23.25.
    expected = latent[0, 0, 23, 30] + 0.25 + 0.25 * 62
    assert crop[0, 0, 0, 0] == pytest.approx(float(expected))
    assert torch.equal(crop[..., -1, -1], latent[..., -1, -1]), "nothing lies behind the last one"


def test_a_reference_is_never_mixed_but_cut_at_the_nearest_pixel() -> None:
    latent = numbered(1, 4, 47, 62)
    crop = crop_planes(latent, CORNER, REFERENCE)
    assert torch.equal(crop[..., :23, :31], latent[..., 23:46, 30:61])


def test_a_crop_by_a_number_of_pixels_that_no_latent_fills_is_rounded_up() -> None:
    region = replace(SMALL, canvas_width=96, width=96, process_width=104, process_height=64)
    assert crop_planes(numbered(1, 4, 3, 6), region, ENCODED).shape == (1, 4, 4, 7), "16 pixels to a latent, 104 = 6.5 x 16"


def test_frames_of_the_item_are_taken_from_a_picture_that_has_all() -> None:
    region = replace(INNER, canvas_frames=5, first_frame=2, frames=2)
    hint = numbered(5, 3, 384, 512)
    assert torch.equal(crop_planes(hint, region, HINT), by_hand(hint[2:4], region))
    assert crop_planes(hint[:1], region, HINT).shape[0] == 1, "one hint for all frames stays"
    assert crop_planes(numbered(384, 512), replace(region, canvas_frames=384), MASK).shape == (192, 256)


def test_a_single_value_stays_as_it_is() -> None:
    assert crop_planes(torch.ones(1, 1, 1, 1), CORNER, HINT).shape == (1, 1, 1, 1)


def test_a_crop_keeps_the_memory_format_of_the_image() -> None:
    whole = numbered(1, 60, 100, 3).movedim(-1, 1)
    crop = crop_planes(whole, SMALL, HINT)
    assert crop.shape == (1, 3, 64, 104) and crop.stride(1) == 1


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_tiles_of_any_hint_put_side_by_side_are_what_comfyui_shows_of_the_whole(data: Any) -> None:
    width, height = data.draw(st.integers(16, 90)), data.draw(st.integers(16, 90))
    hint = numbered(1, 1, data.draw(st.integers(8, 120)), data.draw(st.integers(8, 120)))
    split_x, split_y = data.draw(st.integers(1, width - 1)), data.draw(st.integers(1, height - 1))

    def crop(left: int, top: int, right: int, bottom: int) -> torch.Tensor:
        region = Region(width, height, left, top, right - left, bottom - top, right - left, bottom - top)
        return interpolate(crop_planes(hint, region, HINT), size=(bottom - top, right - left), mode="nearest-exact")

    rows = [torch.cat([crop(0, top, split_x, bottom), crop(split_x, top, width, bottom)], dim=-1)
            for top, bottom in ((0, split_y), (split_y, height))]  # fmt: skip
    canvas = Region(width, height, 0, 0, width, height, width, height)
    whole = interpolate(centred(hint, canvas), size=(height, width), mode="nearest-exact")
    wrong = (torch.cat(rows, dim=-2) != whole)[0, 0]
    lines = wrong.float().mean(dim=-1) > 0.5, wrong.float().mean(dim=-2) > 0.5
    # A whole row or column may differ where its place lies just between two pixels, which floats put to either side.
    assert max(line.sum() for line in lines) <= 2 and not wrong[~lines[0]][:, ~lines[1]].any()


# -- areas --------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("area", "expected"), [
    ((16, 16, 16, 24), (16, 16, 8, 8)),  # inside
    ((48, 64, 0, 0), WHOLE),  # all of the canvas
    ((24, 32, 8, 16), WHOLE),  # just the region
    ((48, 24, 0, 0), (24, 8, 0, 0)),  # sticks out at the left
    ((48, 24, 0, 40), (24, 8, 0, 24)),  # and at the right
    ((48, 16, 0, 0), None),  # ends where the region begins
    ((48, 16, 0, 48), None),  # begins where it ends
    ((8, 64, 0, 0), None),
    ((8, 64, 32, 0), None),
    ((999, 24, 0, 40), (24, 8, 0, 24)),  # longer than the canvas
])  # fmt: skip
def test_an_area_is_told_from_the_corner_of_the_tile(area: Any, expected: Any) -> None:
    assert crop_area(area, INNER) == expected


def test_an_area_in_parts_of_the_canvas_means_the_same_latents() -> None:
    area = crop_area(("percentage", 0.5, 0.375, 0.25, 0.5), INNER)  # latents 24 x 24 at (12, 32) of 48 x 64
    assert area is not None and area[0] == "percentage"
    assert [round(part * side) for part, side in zip(area[1:], (24, 32, 24, 32), strict=True)] == [20, 16, 4, 16]
    assert crop_area(("percentage", 1.0, 1.0, 0.0, 0.0), CORNER) == WHOLE
    assert crop_area(("percentage", 0.5, 0.5, 0.0, 0.0), replace(CORNER, left=260, top=200)) is None


def test_an_area_at_the_edge_covers_what_the_crop_repeats() -> None:
    assert crop_area((8, 6, 0, 6), replace(SMALL, canvas_width=96, width=96)) == (8, 7, 0, 6)


def test_an_area_with_time_keeps_it() -> None:
    assert crop_area((5, 48, 24, 2, 0, 0), INNER) == (5, 24, 8, 2, 0, 0)
    assert crop_area(("percentage", 0.5, 1.0, 1.0, 0.25, 0.0, 0.0), INNER) == ("percentage", 0.5, 1.0, 1.0, 0.25, 0.0, 0.0)


def test_edges_between_latents_go_to_the_nearest_one() -> None:
    region = replace(INNER, left=133, top=67)
    assert crop_area((16, 16, 16, 24), region) == (16, 16, 8, 7), "59 px are 7.4 latents, 61 px are 7.6"


def test_boxes_are_exact_cut_off_and_left_out() -> None:
    boxes = [("in", 8, 8, 16, 24), ("left", 8, 20, 16, 0), ("out", 8, 8, 0, 0)]
    assert crop_boxes(boxes, INNER) == [("in", 8, 8, 8, 8), ("left", 8, 4, 8, 0)]
    assert crop_boxes(boxes[:1], replace(INNER, left=132, top=60)) == [("in", 8, 8, 8.5, 7.5)]


# -- conditionings ------------------------------------------------------------------------------------------------------
def cropped(*facts: dict[str, Any], region: Region = INNER) -> list[Any]:
    conditioning = [[f"tokens{number}", entry] for number, entry in enumerate(facts)]
    before = [[tokens, dict(entry)] for tokens, entry in conditioning]
    result: list[Any] = ComfyTileCropper().crop_conditioning(conditioning, region)
    assert [[tokens, list(entry)] for tokens, entry in conditioning] == [[tokens, list(entry)] for tokens, entry in before]
    assert all(entry[1][name] is old[1][name] for entry, old in zip(conditioning, before, strict=True) for name in old[1])
    return result


def test_what_has_no_place_passes_untouched() -> None:
    facts = {"pooled_output": torch.rand(1, 8), "strength": 0.7, "start_percent": 0.1, "width": 4096, "crop_w": 64, "guidance": 3.5}
    ((tokens, after),) = cropped(facts)
    assert tokens == "tokens0" and after.keys() == facts.keys() and all(after[name] is facts[name] for name in facts)


def test_parts_of_a_prompt_that_lie_outside_are_left_out() -> None:
    outside = torch.zeros(1, 384, 512)
    outside[:, :60] = 1
    kept = cropped({"area": (48, 16, 0, 0)}, {"area": (48, 32, 0, 0), "strength": 0.5}, {"mask": outside}, {})
    assert kept == [["tokens1", {"area": (24, 16, 0, 0), "strength": 0.5}], ["tokens3", {}]]


def test_where_all_parts_lie_outside_the_first_counts_for_the_tile(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    mask = torch.zeros(1, 384, 512)
    kept = cropped({"mask": mask, "set_area_to_bounds": True, "strength": 0.5}, {"area": (48, 16, 0, 0)})
    assert kept == [["tokens0", {"strength": 0.5}]]
    assert len(caplog.records) == 1 and "first part" in caplog.text


def test_an_area_over_the_whole_tile_is_none() -> None:
    assert cropped({"area": (48, 64, 0, 0), "strength": 0.5}) == [["tokens0", {"strength": 0.5}]]


def test_a_mask_keeps_its_bounds_flag_and_strength() -> None:
    mask = torch.zeros(1, 384, 512)
    mask[:, 100:150, 200:250] = 1
    ((_, facts),) = cropped({"mask": mask, "set_area_to_bounds": True, "mask_strength": 0.5})
    assert torch.equal(facts["mask"], mask[:, 64:256, 128:384]) and facts["set_area_to_bounds"] and facts["mask_strength"] == 0.5


def test_latents_and_masks_that_go_into_the_model_are_cut_whether_alone_or_in_lists() -> None:
    latent, mask = numbered(1, 4, 48, 64), numbered(1, 1, 384, 512)
    ((_, facts),) = cropped({
        "concat_latent_image": latent, "concat_mask": mask, "vace_frames": [latent[None][0]], "reference_latents": [latent, latent],
    })  # fmt: skip
    assert torch.equal(facts["concat_latent_image"], latent[..., 8:32, 16:48])
    assert torch.equal(facts["concat_mask"], mask[..., 64:256, 128:384])
    assert [tuple(part.shape) for part in facts["vace_frames"] + facts["reference_latents"]] == [(1, 4, 24, 32)] * 3


def test_a_reference_of_another_aspect_and_an_unknown_picture_pass_with_one_line_each(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    square, unknown = numbered(1, 16, 64, 64), numbered(1, 16, 48, 64)
    cropper = ComfyTileCropper()
    conditioning = [["tokens", {"reference_latents": [square], "somebody's_latent": unknown}]]
    for left in (0, 128):
        ((_, facts),) = cropper.crop_conditioning(conditioning, replace(INNER, left=left))
        assert facts["reference_latents"][0] is square and facts["somebody's_latent"] is unknown
    assert ["reference_latents" in caplog.text, "somebody's_latent" in caplog.text, len(caplog.records)] == [True, True, 2]


def test_gligen_boxes_of_other_tiles_are_left_out_and_gligen_with_them() -> None:
    model = object()
    ((_, facts),) = cropped({"gligen": ("position", model, [("a", 8, 8, 16, 24), ("b", 8, 8, 0, 0)])})
    assert facts["gligen"] == ("position", model, [("a", 8, 8, 8, 8)])
    assert cropped({"gligen": ("position", model, [("b", 8, 8, 0, 0)])}) == [["tokens0", {}]]


def test_an_empty_conditioning_stays_empty() -> None:
    assert ComfyTileCropper().crop_conditioning([], INNER) == []


# -- control ------------------------------------------------------------------------------------------------------------
class Control:
    """What a control object of ComfyUI has, as far as cropping goes."""

    def __init__(self, hint: torch.Tensor) -> None:
        self.cond_hint_original, self.previous_controlnet = hint, None

    def copy(self) -> Control:
        return Control(self.cond_hint_original)


def test_positive_and_negative_of_each_tile_share_one_control_although_other_tiles_were_cut_between() -> None:
    """An item with several tiles cuts the positives of all of them before the first negative."""
    crops, control = ControlCrops(), Control(torch.rand(1, 3, 384, 512))
    regions = [INNER, replace(INNER, left=0), replace(INNER, top=0)]
    positives = [crops.crop(control, region) for region in regions]
    assert all(crops.crop(control, region) is positive for region, positive in zip(regions, positives, strict=True))
    assert len({id(positive) for positive in positives}) == 3
    before = [weakref.ref(positive) for positive in positives]
    positives.clear()
    gc.collect()
    assert not any(one() for one in before), "nobody keeps the crops of tiles that are done"
