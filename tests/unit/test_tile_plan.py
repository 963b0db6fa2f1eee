"""Where tiles lie, what each mode lets run at once, what belongs into one item, and which options are refused."""
from __future__ import annotations

import time
from dataclasses import replace

import pytest

from tiler.boxes import Box, Size
from tiler.errors import FrameOverLimit, TileOptionInvalid, TooManyTiles
from tiler.groups import GroupLimits, frame_groups, group_steps, levels
from tiler.options import SeamFix, TileOptions
from tiler.plan import MOST_STEPS, TilePlan, TileStep, plan_tiles

SMALL = TileOptions(64, 64, padding=16, feather=8)


def tiles(plan: TilePlan) -> list[TileStep]:
    return [step for step in plan.steps if step.pass_name == "tiles"]


# -- boxes -----------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("size", [(1, 1), (63, 65), (64, 64), (512, 512), (1000, 777), (2048, 64)])
@pytest.mark.parametrize("uniform", [True, False])
@pytest.mark.parametrize("kind", ["none", "band", "half_tile_intersections"])
def test_cells_cover_the_canvas_once_and_each_read_holds_its_write(size: tuple[int, int], uniform: bool, kind: str) -> None:
    options = TileOptions(128, 64, padding=24, feather=20, uniform=uniform, seam_fix=SeamFix(kind, width=32))  # type: ignore[arg-type]
    plan = plan_tiles(size, options)
    canvas = Box(0, 0, *size)
    assert sum(step.cell.width * step.cell.height for step in tiles(plan)) == size[0] * size[1]
    for step in plan.steps:
        assert canvas.contains(step.read) and step.read.contains(step.write) and step.write.contains(step.cell)
        assert 0 <= step.size.width - step.read.width < 8 and 0 <= step.size.height - step.read.height < 8
        assert step.size.width % 8 == step.size.height % 8 == 0
    assert [step.index for step in plan.steps] == list(range(len(plan.steps)))


def test_uniform_crops_have_one_size_and_lie_inside_at_the_edges() -> None:
    plan = plan_tiles((1100, 600), TileOptions())
    assert {step.size for step in plan.steps} == {Size(576, 576)}
    assert {(step.read.width, step.read.height) for step in plan.steps} == {(576, 576)}


def test_crops_of_different_size_keep_the_padding_on_all_sides_but_the_canvas_edge() -> None:
    plan = plan_tiles((1100, 600), TileOptions(uniform=False))
    assert plan.steps[4].read == Box(480, 480, 1056, 600)
    assert plan.steps[4].cell == Box(512, 512, 1024, 600)


def test_a_feather_wider_than_the_padding_widens_the_crop() -> None:
    plan = plan_tiles((128, 64), TileOptions(64, 64, padding=0, feather=64, uniform=False))
    assert plan.steps[0].write == plan.steps[0].read == Box(0, 0, 96, 64)


def test_sizes_are_rounded_to_multiples_of_eight_and_odd_ramps_made_even() -> None:
    plan = plan_tiles((200, 100), TileOptions(68, 60, feather=7))
    assert plan.options.tile == Size(72, 64)
    assert plan.steps[0].ramps.right == plan.steps[0].ramps.bottom == 8


def test_ramps_lie_on_every_side_but_the_canvas_edge() -> None:
    plan = plan_tiles((192, 192), SMALL)
    ramps = plan.steps[1].ramps
    assert (ramps.left, ramps.top, ramps.right, ramps.bottom) == (8, 0, 8, 8)


def test_equal_arguments_give_equal_plans() -> None:
    assert plan_tiles((700, 500), SMALL) == plan_tiles((700, 500), replace(SMALL))


def test_half_tiles_reach_to_the_middle_of_the_tiles_and_their_crop_has_the_padding_beyond() -> None:
    seam = SeamFix("half_tile", padding=8, denoise=0.2)
    step = next(step for step in plan_tiles((128, 64), replace(SMALL, seam_fix=seam)).steps if step.pass_name == "vertical_seams")
    assert step.write == Box(32, 0, 96, 64)
    assert step.read == Box(24, 0, 104, 64)
    assert step.denoise == 0.2


def test_one_tile_has_no_seams() -> None:
    plan = plan_tiles((64, 64), replace(SMALL, seam_fix=SeamFix("half_tile_intersections")))
    assert [step.pass_name for step in plan.steps] == ["tiles"]


# -- order -----------------------------------------------------------------------------------------------------------------
def test_linear_goes_row_by_row_along_a_diagonal_front() -> None:
    plan = plan_tiles((256, 192), SMALL)
    assert [(step.row, step.column) for step in plan.steps] == [(row, column) for row in range(3) for column in range(4)]
    # Column + 2 rows, where crops of edge tiles, moved inwards, do not hold it up.
    assert levels(plan) == [0, 1, 2, 3, 2, 3, 4, 5, 4, 5, 6, 7]


def test_chess_needs_four_rounds_however_large_the_canvas() -> None:
    assert set(levels(plan_tiles((1024, 768), replace(SMALL, mode="chess", uniform=False)))) == {0, 1, 2, 3}


def test_independent_tiles_wait_for_nothing_and_read_the_image() -> None:
    plan = plan_tiles((256, 192), replace(SMALL, mode="independent", seam_fix=SeamFix("band", width=16)))
    assert plan.reads_image
    assert {(step.waits_for, step.source) for step in tiles(plan)} == {((), "image")}
    seams = plan.steps[len(tiles(plan)) :]
    assert all(step.waits_for and step.source == "canvas" for step in seams)


def test_a_slow_tile_holds_only_the_tiles_that_see_it() -> None:
    plan = plan_tiles((1024, 64), replace(SMALL, mode="chess"))
    held = {3}
    for step in plan.steps:
        if held & set(step.waits_for):
            held.add(step.index)
    assert {plan.steps[index].column for index in held} == {5, 6, 7}


# -- seeds -----------------------------------------------------------------------------------------------------------------
def test_all_steps_have_the_same_seed_or_each_its_own() -> None:
    same, offset = (plan_tiles((128, 64), replace(SMALL, seeds=seeds)) for seeds in ("same", "offset"))  # type: ignore[arg-type]
    assert [same.seed(index, 7) for index in (0, 1)] == [7, 7]
    assert [offset.seed(index, 7) for index in (0, 1)] == [7, 8]
    assert offset.seed(1, 2**64 - 1) == 0


# -- items -----------------------------------------------------------------------------------------------------------------
def grouped(plan: TilePlan, pixels: int, *, steps: int = 99, shares: int = 1) -> tuple[tuple[int, ...], ...]:
    return group_steps(plan, GroupLimits(pixels, steps, shares))


def test_steps_of_one_level_share_items_up_to_the_limits() -> None:
    plan = plan_tiles((320, 64), replace(SMALL, mode="independent"))
    crop = plan.steps[0].size.width * plan.steps[0].size.height
    assert grouped(plan, 2 * crop) == grouped(plan, 10 * crop, steps=2) == ((0, 1), (2, 3), (4,))
    assert grouped(plan, 10 * crop) == ((0, 1, 2, 3, 4),)
    assert grouped(plan, 2 * crop - 1) == grouped(plan, 0) == ((0,), (1,), (2,), (3,), (4,))


def test_a_level_stays_enough_items_for_several_workers() -> None:
    plan = plan_tiles((64 * 17, 64), replace(SMALL, mode="independent"))
    assert [len(item) for item in grouped(plan, 10**9, shares=8)] == [2] * 8 + [1]
    assert [len(item) for item in grouped(plan, 10**9, shares=9)] == [1] * 17


def test_linear_items_hold_steps_of_the_diagonal_front() -> None:
    plan = plan_tiles((256, 192), SMALL)
    items = grouped(plan, 10**9)
    assert items[2] == (2, 4)
    assert [len({levels(plan)[index] for index in item}) for item in items] == [1] * len(items)


def test_an_item_holds_steps_of_one_pass() -> None:
    plan = plan_tiles((128, 128), replace(SMALL, mode="independent", seam_fix=SeamFix("band", width=16)))
    assert all(len({plan.steps[index].pass_name for index in item}) == 1 for item in grouped(plan, 10**9))


@pytest.mark.parametrize(
    ("frames", "limit", "groups"),
    [
        (1, 100, ((0, 1),)),
        (7, 300, ((0, 2), (2, 4), (4, 7))),
        (6, 300, ((0, 3), (3, 6))),
        (5, 10**9, ((0, 5),)),
        (3, 100, ((0, 1), (1, 2), (2, 3))),
    ],
)
def test_frames_are_split_into_few_groups_of_nearly_one_size(frames: int, limit: int, groups: tuple[tuple[int, int], ...]) -> None:
    assert frame_groups(frames, 100, limit) == groups


def test_a_frame_over_the_limit_is_refused_with_both_numbers() -> None:
    with pytest.raises(FrameOverLimit, match="takes 100 bytes, an item may take 99"):
        frame_groups(3, 100, 99)


def test_no_frames_are_refused() -> None:
    with pytest.raises(TileOptionInvalid, match="frames is 0"):
        frame_groups(0, 100, 1000)


# -- options that cannot work ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (TileOptions(tile_width=59), r"tile_width is 59; it must be a whole number from 64 to 2048"),
        (TileOptions(tile_height=2052), "tile_height is 2052"),
        (TileOptions(tile_width="512"), "tile_width is '512'"),  # type: ignore[arg-type]
        (TileOptions(padding=-1), "padding is -1; it must be a whole number from 0 to 512"),
        (TileOptions(64, 64, padding=257), "from 0 to 256"),
        (TileOptions(padding=True), "padding is True"),
        (TileOptions(64, 128, feather=65), "feather is 65; it must be a whole number from 0 to 64"),
        (TileOptions(mode="spiral"), "mode is 'spiral'; it must be one of linear, chess, independent"),  # type: ignore[arg-type]
        (TileOptions(seeds="random"), "seeds is 'random'"),  # type: ignore[arg-type]
        (TileOptions(seam_fix=SeamFix("zip")), "seam_fix.kind is 'zip'"),  # type: ignore[arg-type]
        (TileOptions(seam_fix=SeamFix("band", width=4)), "seam_fix.width is 4"),
        (TileOptions(64, 64, seam_fix=SeamFix("band", width=60)), "seam_fix.feather is 8; it must be a whole number from 0 to 4"),
        (TileOptions(seam_fix=SeamFix("half_tile", feather=257)), "seam_fix.feather is 257"),
        (TileOptions(seam_fix=SeamFix("half_tile", padding=-8)), "seam_fix.padding is -8"),
        (TileOptions(seam_fix=SeamFix("band", denoise=1.5)), "seam_fix.denoise is 1.5"),
    ],
)
def test_an_option_that_cannot_work_is_refused_with_its_range(options: TileOptions, message: str) -> None:
    with pytest.raises(TileOptionInvalid, match=message):
        plan_tiles((600, 600), options)


def test_values_at_the_limits_work() -> None:
    assert plan_tiles((600, 600), TileOptions(60, 2051, padding=256, feather=64)).options.tile == (64, 2048)
    assert plan_tiles((600, 600), TileOptions(64, 64, padding=0, feather=0)).steps
    assert plan_tiles((600, 600), TileOptions(seam_fix=SeamFix("half_tile", feather=0, denoise=0.0))).steps


@pytest.mark.parametrize("size", [(0, 5), (5, 0), (-1, 5)])
def test_an_empty_canvas_is_refused(size: tuple[int, int]) -> None:
    with pytest.raises(TileOptionInvalid, match="size is"):
        plan_tiles(size)


# -- large canvases --------------------------------------------------------------------------------------------------------
def test_65_536_tiles_are_planned_in_seconds() -> None:
    """About 0.8 s of a processor here, where all pairs would be 4 billion; the limit leaves room for slow machines."""
    start = time.process_time()
    plan = plan_tiles((16384, 16384), TileOptions(64, 64))
    assert time.process_time() - start < 10
    assert len(plan.steps) == 65536
    assert sum(len(step.waits_for) for step in plan.steps) < 2 * 65536


def test_a_canvas_beyond_the_limit_is_refused_at_once() -> None:
    with pytest.raises(TooManyTiles, match=f"at most {MOST_STEPS} are planned; use larger tiles"):
        plan_tiles((10**9, 10**9), TileOptions(64, 64))
    with pytest.raises(TooManyTiles):
        plan_tiles((24000, 24000), TileOptions(64, 64, seam_fix=SeamFix("half_tile_intersections")))
