"""Tile plans out of a fuzzer: any numbers give a plan that covers the canvas, within the promised number of steps, or a refusal by name."""
from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st

from tiler.errors import ImageInvalid, TileOptionInvalid, TooManyTiles
from tiler.options import SeamFix, TileOptions
from tiler.plan import plan_tiles

ODD: st.SearchStrategy[Any] = st.sampled_from([-1, 0, 1, 7, 8, 59, 60, 2**31, 2**70, True])
WORDS: st.SearchStrategy[Any] = st.sampled_from(["", "Linear", None, 1, (), []])
PIXELS = st.integers(0, 300) | ODD
SIDES = st.integers(1, 700) | st.sampled_from([-1, 0, 2**31, 2**70])
SEAMS = st.builds(
    SeamFix,
    kind=st.sampled_from(["none", "band", "half_tile", "half_tile_intersections"]) | WORDS,
    width=PIXELS,
    feather=st.none() | PIXELS,
    padding=PIXELS,
    denoise=st.none() | st.floats(),
)
OPTIONS = st.builds(
    TileOptions,
    tile_width=st.integers(60, 300) | ODD,
    tile_height=st.integers(60, 300) | ODD,
    padding=PIXELS,
    feather=PIXELS,
    uniform=st.booleans(),
    mode=st.sampled_from(["linear", "chess", "independent"]) | WORDS,
    seam_fix=st.just(SeamFix()) | SEAMS,
    seeds=st.sampled_from(["same", "offset"]) | WORDS,
)


@given(st.tuples(SIDES, SIDES), OPTIONS)
@example((2**70, 1), TileOptions())
@example((1, 1), TileOptions(mode=[]))  # type: ignore[arg-type]
def test_any_numbers_give_a_plan_that_covers_the_canvas_or_a_refusal(size: Any, options: TileOptions) -> None:
    try:
        plan = plan_tiles(size, options)
    except (TileOptionInvalid, TooManyTiles, ImageInvalid):
        return
    covered = np.zeros((plan.size.height, plan.size.width), bool)
    for number, step in enumerate(plan.steps):
        assert step.index == number and all(other < number for other in (*step.waits_for, *step.blend_after))
        write, read = step.write, step.read
        assert 0 <= read.left <= write.left < write.right <= read.right <= plan.size.width
        assert 0 <= read.top <= write.top < write.bottom <= read.bottom <= plan.size.height
        covered[write.top : write.bottom, write.left : write.right] = True
    assert covered.all() and (plan.size.width, plan.size.height) == size
