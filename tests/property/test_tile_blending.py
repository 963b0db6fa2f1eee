"""Whatever the plan and the order in which tiles come: an untouched image keeps its bits, and a refined one has the same bytes."""
from __future__ import annotations

from dataclasses import replace
from itertools import count

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tile_reference import SEAM_KINDS, mixed, mixing, one_by_one, picture, plans, run_events, weights
from tiler.blender import Blender
from tiler.crop import Pixels
from tiler.options import SeamFix, TileOptions
from tiler.plan import TilePlan, TileStep, plan_tiles

small_plans = plans(most_columns=4, most_steps=50)


def special(image: Pixels) -> Pixels:
    """Values that careless arithmetic changes: negative zeros, tiny, huge and beyond [0, 1]."""
    image.flat[::7] = -0.0
    image.flat[1::11] = np.float32(1e-45)
    image.flat[2::13] = np.finfo(np.float32).max
    image.flat[3::17] = -3.5
    return image


@given(small_plans, st.integers(1, 2), st.integers(1, 4))
@settings(max_examples=80)
def test_tiles_that_come_back_unchanged_leave_every_bit_of_the_image(plan: TilePlan, frames: int, channels: int) -> None:
    image = special(picture(plan, frames, channels))
    result = run_events(plan, one_by_one(plan), lambda step, crop: crop, image)
    assert result.tobytes() == image.tobytes()


@given(small_plans)
@settings(max_examples=80)
def test_nothing_of_the_unrefined_image_is_left(plan: TilePlan) -> None:
    image = np.zeros((1, plan.size.height, plan.size.width, 1), np.float32)
    result = run_events(plan, one_by_one(plan), lambda step, crop: np.ones_like(crop), image)
    assert (result == 1).all()


@given(small_plans)
@settings(max_examples=80)
def test_the_weights_of_the_tiles_add_up_to_one_at_every_pixel(plan: TilePlan) -> None:
    tiles = [weights(plan, step) for step in plan.steps if step.pass_name == "tiles"]
    np.testing.assert_allclose(sum(tiles), 1, atol=1e-12)
    for step in plan.steps:
        height, width = np.nonzero(weights(plan, step))
        assert (width.min(), height.min(), width.max() + 1, height.max() + 1) == (
            step.write.left, step.write.top, step.write.right, step.write.bottom)  # fmt: skip


@given(small_plans)
@settings(max_examples=60)
def test_each_tile_is_in_the_canvas_with_its_weight_whatever_the_order(plan: TilePlan) -> None:
    """One after the other the tiles give what a weighted sum of them gives; only the rounding differs (a few steps of float32)."""
    image, tiles = picture(plan), {}

    def refine(step: TileStep, crop: Pixels) -> Pixels:
        tiles[step.index] = np.random.default_rng(step.index).random(crop.shape, np.float32)
        return tiles[step.index]

    blended = run_events(plan, one_by_one(plan), refine, image)
    np.testing.assert_allclose(blended, mixed(plan, [tiles[step.index] for step in plan.steps], image), atol=2e-6)


@given(small_plans, st.integers(1, 6), st.randoms(use_true_random=False))
@settings(max_examples=80)
def test_any_order_and_number_of_arrivals_gives_the_bytes_of_one_after_the_other(plan: TilePlan, workers: int, random: object) -> None:
    """Workers cut what they may, finish in any order and send tiles twice."""
    choose = random.choice  # type: ignore[attr-defined]
    image = picture(plan)
    blender = Blender(plan, image)
    can_be_cut, running, finished = blender.cuttable(), {}, {}
    for _ in count():
        if len(running) < workers and can_be_cut:
            index = can_be_cut.pop(can_be_cut.index(choose(can_be_cut)))
            running[index] = mixing(plan.steps[index], blender.cut(index))
        elif running:
            index = choose(list(running))
            finished[index] = running.pop(index)
            blender.put(index, finished[index])
        else:
            break
        if finished and choose([True, False]):
            again = choose(list(finished))
            blender.put(again, finished[again].copy())
        can_be_cut += blender.advance().to_cut
    assert blender.finish().tobytes() == run_events(plan, one_by_one(plan), mixing, image).tobytes()


@given(small_plans, st.randoms(use_true_random=False))
@settings(max_examples=40)
def test_a_new_master_blends_tiles_of_the_old_one_without_cutting_them(plan: TilePlan, random: object) -> None:
    """After a restart the tiles that were finished are put into a fresh blender, in any order, and the rest is cut as usual."""
    image, tiles = picture(plan), {}

    def keep(step: TileStep, crop: Pixels) -> Pixels:
        tiles[step.index] = mixing(step, crop)
        return tiles[step.index]

    expected = run_events(plan, one_by_one(plan), keep, image)
    kept = list(range(len(plan.steps) // 2))
    random.shuffle(kept)  # type: ignore[attr-defined]
    blender = Blender(plan, image)
    for index in kept:
        blender.put(index, tiles[index])
    blender.advance()
    can_be_cut = blender.cuttable()
    while can_be_cut:
        index = can_be_cut.pop()
        blender.put(index, mixing(plan.steps[index], blender.cut(index)))
        can_be_cut += blender.advance().to_cut
    assert blender.finish().tobytes() == expected.tobytes()


@pytest.mark.parametrize("kind", SEAM_KINDS)
def test_modes_differ_in_what_tiles_see_and_not_in_how_they_are_mixed(kind: str) -> None:
    """With tiles that do not depend on what they see, the order makes no difference but rounding."""
    first = plan_tiles((300, 200), TileOptions(64, 64, feather=32, seam_fix=SeamFix(kind, width=40, feather=16)))  # type: ignore[arg-type]
    image = picture(first)

    def by_place(step: TileStep, crop: Pixels) -> Pixels:
        return np.full_like(crop, np.float32(len(step.pass_name) * 0.03 + step.row * 0.11 + step.column * 0.07))

    results = []
    for mode in ("linear", "chess", "independent"):
        plan = plan_tiles(first.size, replace(first.options, mode=mode))
        results.append(run_events(plan, one_by_one(plan), by_place, image))
    np.testing.assert_allclose(results[1], results[0], atol=2e-6)
    np.testing.assert_allclose(results[2], results[0], atol=2e-6)
