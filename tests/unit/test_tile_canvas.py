"""Cutting, blending, and the schedule between them, on plans small enough to follow."""
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.tile_reference import mixing, one_by_one, picture, run_events
from tiler.blend import blend_tile
from tiler.blender import Blender
from tiler.boxes import Box
from tiler.crop import Pixels, cut_tile
from tiler.errors import CropGone, TileMissing, TileNotReady
from tiler.options import TileOptions
from tiler.plan import TilePlan, plan_tiles
from tiler.schedule import Released, Schedule
from tiler.weights import zones


def row_of_tiles(tiles: int, **options: object) -> TilePlan:
    return plan_tiles((64 * tiles, 64), TileOptions(64, 64, padding=8, feather=8, **options))  # type: ignore[arg-type]


# -- cutting ---------------------------------------------------------------------------------------------------------------
def test_a_crop_is_the_read_box_continued_by_its_last_column_and_row() -> None:
    plan = plan_tiles((70, 13), TileOptions(64, 64))
    image = picture(plan, frames=2, channels=4)
    (crop, *_) = (cut_tile(image, step) for step in plan.steps)
    assert crop.shape == (2, 16, 72, 4) and crop.dtype == np.float32 and crop.flags.c_contiguous
    assert np.array_equal(crop[:, :13, :70], image)
    assert (crop[:, :13, 70:] == image[:, :, 69:70]).all()
    assert (crop[:, 13:] == crop[:, 12:13]).all()


def test_a_crop_is_a_copy() -> None:
    image = picture(plan := row_of_tiles(2))
    before = image.copy()
    cut_tile(image, plan.steps[0])[...] = 5
    assert np.array_equal(image, before)


def test_a_crop_of_a_memory_map_or_of_strided_frames_is_the_same(tmp_path: Path) -> None:
    image = picture(plan := row_of_tiles(2), frames=4, channels=3)
    mapped = np.memmap(tmp_path / "canvas", np.float32, "w+", shape=image.shape)
    mapped[...] = image
    assert np.array_equal(cut_tile(mapped, plan.steps[1]), cut_tile(image, plan.steps[1]))
    assert np.array_equal(cut_tile(image[::2], plan.steps[1]), cut_tile(image, plan.steps[1])[::2])


# -- blending --------------------------------------------------------------------------------------------------------------
def test_the_ramp_between_two_tiles_is_straight_with_its_middle_on_the_seam() -> None:
    plan = row_of_tiles(2)
    image = np.zeros((1, 64, 128, 1), np.float32)
    done = run_events(plan, one_by_one(plan), lambda step, crop: np.full_like(crop, step.index), image)
    assert done[0, 5, 58:70, 0].tolist() == [0, 0, *(np.arange(1, 17, 2) / 16).tolist(), 1, 1]


def test_where_a_tile_has_all_the_weight_the_canvas_gets_its_very_bits() -> None:
    """Also up to the end of a ramp that is still to be covered, and from a canvas whose rounding would show."""
    plan = row_of_tiles(2)
    canvas = picture(plan) * np.float32(1e6)
    step = plan.steps[0]
    tile = mixing(step, cut_tile(picture(plan, seed=1), step))
    blend_tile(canvas, step, tile)
    assert np.array_equal(canvas[:, :, :68], tile[:, :, :68])


def test_where_four_tiles_meet_each_has_the_product_of_its_ramps() -> None:
    """Blended one after the other the second and third tile would leave an edge; the share that each takes leaves none."""
    plan = plan_tiles((128, 128), TileOptions(64, 64, padding=8, feather=8))
    image = np.zeros((1, 128, 128, 4), np.float32)
    colours = np.eye(4, dtype=np.float32)
    done = run_events(plan, one_by_one(plan), lambda step, crop: np.broadcast_to(colours[step.index], crop.shape), image)
    rising = np.clip((np.arange(128) + 0.5 - 60) / 8, 0, 1)
    wanted = [np.outer(y, x) for y in (1 - rising, rising) for x in (1 - rising, rising)]
    np.testing.assert_allclose(done[0], np.stack(wanted, axis=-1), atol=1e-7)


def test_zones_cover_the_write_box_once() -> None:
    plan = plan_tiles((200, 150), TileOptions(64, 64, feather=30))
    for step in plan.steps:
        covered = np.zeros((150, 200), int)
        for zone in zones(step):
            covered[zone.y.start : zone.y.stop, zone.x.start : zone.x.stop] += 1
        assert covered[step.write.top : step.write.bottom, step.write.left : step.write.right].min() == covered.max() == 1
        assert covered.sum() == step.write.width * step.write.height


def test_a_tile_changes_nothing_outside_its_write_box() -> None:
    plan = plan_tiles((200, 150), TileOptions(64, 64, feather=30))
    canvas = picture(plan)
    before = canvas.copy()
    step = plan.steps[5]
    blend_tile(canvas, step, np.full_like(cut_tile(canvas, step), 9))
    changed = np.argwhere(canvas[0, :, :, 0] != before[0, :, :, 0])
    (top, left), (bottom, right) = changed.min(axis=0).tolist(), (changed.max(axis=0) + 1).tolist()
    assert Box(left, top, right, bottom) == step.write


def test_a_memory_map_is_blended_in_place(tmp_path: Path) -> None:
    plan = row_of_tiles(3)
    image = picture(plan, frames=2, channels=3)
    mapped = np.memmap(tmp_path / "canvas", np.float32, "w+", shape=image.shape)
    mapped[...] = image
    blender = Blender(plan, mapped, mapped)
    for step in plan.steps:
        blender.put(step.index, mixing(step, blender.cut(step.index)))
        blender.advance()
    blender.finish()
    assert np.fromfile(tmp_path / "canvas", np.float32).tobytes() == run_events(plan, one_by_one(plan), mixing, image).tobytes()


# -- schedule --------------------------------------------------------------------------------------------------------------
def test_a_tile_is_cut_when_the_ones_it_sees_are_blended() -> None:
    schedule = Schedule(row_of_tiles(3))
    assert schedule.cuttable() == [0]
    assert schedule.cut(0) == Released()
    assert schedule.arrive(0) == Released(to_blend=[0])
    assert schedule.blend(0) == Released(to_cut=[1])
    assert (schedule.done, schedule.missing()) == (1, [1, 2])


def test_a_tile_that_changes_what_another_reads_waits_for_its_cut() -> None:
    plan = plan_tiles((130, 100), TileOptions(64, 64, padding=8, feather=8))
    assert (plan.steps[3].waits_for, plan.steps[3].blend_after_cut) == ((1,), (2,))
    schedule = Schedule(plan)
    for index in (0, 1):
        schedule.arrive(index)
        schedule.blend(index)
    assert schedule.cuttable() == [2, 3]
    assert schedule.arrive(3) == Released()
    assert schedule.cut(2) == Released(to_blend=[3])


def test_a_doubled_event_changes_nothing() -> None:
    schedule = Schedule(row_of_tiles(2))
    schedule.cut(0)
    schedule.cut(0)
    schedule.arrive(0)
    assert schedule.arrive(0) == Released()
    schedule.blend(0)
    assert schedule.cut(0) == schedule.arrive(0) == Released()
    with pytest.raises(TileNotReady):
        schedule.blend(0)


def test_a_tile_cannot_be_cut_or_blended_before_its_turn() -> None:
    schedule = Schedule(row_of_tiles(3))
    with pytest.raises(TileNotReady, match=r"tile 2 cannot be cut before tiles \[1\] are blended"):
        schedule.cut(2)
    schedule.arrive(1)
    with pytest.raises(TileNotReady):
        schedule.blend(1)


# -- blender ---------------------------------------------------------------------------------------------------------------
def test_the_missing_tiles_are_named() -> None:
    plan = row_of_tiles(30, mode="independent")
    blender = Blender(plan, picture(plan))
    for index in (3, 0):
        blender.put(index, blender.cut(index))
    assert blender.advance().blended == (0, 3)
    with pytest.raises(TileMissing, match=r"28 of 30 tiles are missing: \[1, 2, 4, .*21\]; run these again") as caught:
        blender.finish()
    assert len(caught.value.indexes) == 20


def test_a_crop_is_the_same_again_until_what_it_reads_changes() -> None:
    plan = row_of_tiles(3)
    blender = Blender(plan, picture(plan))
    first = blender.cut(0)
    assert np.array_equal(blender.cut(0), first)
    blender.put(0, first + 1)
    assert np.array_equal(blender.cut(0), first)
    blender.advance()
    with pytest.raises(CropGone, match="tile 0 cannot be cut again"):
        blender.cut(0)


def test_a_crop_of_the_image_can_always_be_cut_again() -> None:
    plan = row_of_tiles(2, mode="independent")
    blender = Blender(plan, picture(plan))
    first = blender.cut(0)
    blender.put(0, first + 1)
    blender.advance()
    assert np.array_equal(blender.cut(0), first)


def test_the_image_is_left_alone() -> None:
    plan = row_of_tiles(2)
    image = picture(plan)
    image.flags.writeable = False
    blender = Blender(plan, image)
    blender.put(0, blender.cut(0) + 1)
    assert blender.advance().blended == (0,)


def test_equal_pixels_are_told_by_the_checksum_that_the_caller_gives() -> None:
    plan = row_of_tiles(1)
    blender = Blender(plan, picture(plan))
    tile: Pixels = blender.cut(0)
    blender.put(0, tile, b"checksum of the frame")
    blender.put(0, tile, b"checksum of the frame")
    assert blender.advance().blended == (0,)
