"""Images and tiles that no model should return, and some do."""
from __future__ import annotations

import pickle

import numpy as np
import pytest

from tests.tile_reference import picture
from tiler import errors
from tiler.blend import blend_tile
from tiler.blender import Blender
from tiler.crop import Pixels, check_image, cut_tile
from tiler.options import TileOptions
from tiler.plan import TilePlan, plan_tiles


@pytest.fixture
def plan() -> TilePlan:
    return plan_tiles((128, 64), TileOptions(64, 64, padding=8))


@pytest.fixture
def blender(plan: TilePlan) -> Blender:
    return Blender(plan, picture(plan, channels=3))


def nan(tile: Pixels) -> Pixels:
    tile[0, 3, 4, 1] = np.nan
    return tile


def infinite(tile: Pixels) -> Pixels:
    tile[0, 0, 0] = np.inf
    return tile


def opposite_infinities(tile: Pixels) -> Pixels:
    tile[0, 0, 0, :2] = np.inf, -np.inf
    return tile


def twice_the_size(tile: Pixels) -> Pixels:
    return tile.repeat(2, axis=1).repeat(2, axis=2)


def one_frame_more(tile: Pixels) -> Pixels:
    return np.concatenate([tile, tile])


def without_alpha(tile: Pixels) -> Pixels:
    return tile[..., :2]


def half_precision(tile: Pixels) -> Pixels:
    return tile.astype(np.float16)  # type: ignore[return-value]


def without_frames(tile: Pixels) -> Pixels:
    return tile[0]


@pytest.mark.parametrize("damage", [nan, infinite, opposite_infinities])
def test_a_tile_with_pixels_that_are_no_numbers_is_refused_and_changes_nothing(blender: Blender, damage: object) -> None:
    before = blender.canvas.copy()
    with pytest.raises(errors.TileNotFinite, match=r"tile 0 came back with [1-3] values"):
        blender.put(0, damage(blender.cut(0)))  # type: ignore[operator]
    assert blender.advance().blended == ()
    assert np.array_equal(blender.canvas, before)


@pytest.mark.parametrize("damage", [twice_the_size, one_frame_more, without_alpha, half_precision, without_frames])
def test_a_tile_of_another_shape_or_type_is_refused_with_both(blender: Blender, damage: object) -> None:
    with pytest.raises(errors.TileShapeError, match=r"must be float32 \[1, 64, 80, 3\]"):
        blender.put(0, damage(blender.cut(0)))  # type: ignore[operator]


def test_huge_values_whose_sum_overflows_are_finite(blender: Blender) -> None:
    tile = blender.cut(0)
    tile[...] = np.finfo(np.float32).max
    blender.put(0, tile)
    with np.errstate(over="ignore"):
        assert blender.advance().blended == (0,)


def test_a_refused_tile_may_come_again_in_order(blender: Blender) -> None:
    tile = blender.cut(0)
    with pytest.raises(errors.TileNotFinite):
        blender.put(0, nan(tile.copy()))
    blender.put(0, tile)
    assert blender.advance().blended == (0,)


@pytest.mark.parametrize("is_blended", [False, True])
def test_a_second_copy_with_other_pixels_is_refused(blender: Blender, is_blended: bool) -> None:
    tile = blender.cut(0)
    blender.put(0, tile)
    if is_blended:
        blender.advance()
    other = tile.copy()
    other[0, 0, 0, 0] = np.nextafter(other[0, 0, 0, 0], np.float32(2))
    with pytest.raises(errors.DuplicateDiffers, match="tile 0 came twice with different pixels"):
        blender.put(0, other)
    blender.put(0, tile)


@pytest.mark.parametrize("index", [-1, 2, 10**9])
def test_a_tile_that_the_plan_does_not_have_is_refused(blender: Blender, index: int) -> None:
    with pytest.raises(errors.TileUnknown, match="only 0 to 1"):
        blender.put(index, blender.cut(0))
    with pytest.raises(errors.TileUnknown):
        blender.cut(index)


@pytest.mark.parametrize(
    ("image", "problem"),
    [
        (np.zeros((0, 64, 128, 3), np.float32), "has no frames"),
        (np.zeros((1, 64, 128, 5), np.float32), r"has shape \[1, 64, 128, 5\]"),
        (np.zeros((1, 64, 128, 0), np.float32), "has shape"),
        (np.zeros((1, 128, 64, 3), np.float32), "has shape"),
        (np.zeros((64, 128, 3), np.float32), "has shape"),
        (np.zeros((1, 64, 128, 3), np.uint8), "has type uint8"),
        (np.full((2, 64, 128, 3), np.nan, np.float32), "has NaN or infinite pixels in frame 0"),
    ],
)
def test_an_image_that_cannot_be_tiled_is_refused(plan: TilePlan, image: Pixels, problem: str) -> None:
    with pytest.raises(errors.ImageInvalid, match=f"the image {problem}"):
        Blender(plan, image)


def test_the_frame_with_the_bad_pixel_is_named(plan: TilePlan) -> None:
    image = picture(plan, frames=3)
    image[2, 60, 100] = np.inf
    with pytest.raises(errors.ImageInvalid, match="in frame 2"):
        check_image(image, plan.size)


def test_a_canvas_that_cannot_be_written_is_refused(plan: TilePlan) -> None:
    image, step = picture(plan), plan.steps[0]
    tile = cut_tile(image, step)
    closed = image.copy()
    closed.flags.writeable = False
    for canvas, problem in ((closed, "is read-only"), (image.astype(np.float64), "is float64"), (image[:, :10], "has shape")):
        with pytest.raises(errors.ImageInvalid, match=problem):
            blend_tile(canvas, step, tile)
    with pytest.raises(errors.ImageInvalid, match="has shape"):
        cut_tile(image[:, :10], step)
    with pytest.raises(errors.ImageInvalid, match="has a canvas of"):
        Blender(plan, image, closed)


def test_a_canvas_that_is_the_image_is_refused_where_the_image_is_still_read() -> None:
    plan = plan_tiles((128, 64), TileOptions(64, 64, mode="independent"))
    image = picture(plan)
    with pytest.raises(errors.ImageInvalid, match="is its own canvas"):
        Blender(plan, image, image)


# -- the errors themselves ---------------------------------------------------------------------------------------------------
def sample(error: type[errors.TilerError]) -> errors.TilerError:
    return error(**{name: ["a", 1] for name in error.field_names()})


@pytest.mark.parametrize("error", list(errors.all_errors()), ids=lambda error: error.code)
def test_an_error_keeps_its_facts_through_a_pickle(error: type[errors.TilerError]) -> None:
    received = pickle.loads(pickle.dumps(sample(error)))
    assert type(received) is error
    assert (received.fields, str(received)) == (sample(error).fields, str(sample(error)))
    with pytest.raises(AttributeError):
        received.no_such_field  # noqa: B018


def test_each_code_belongs_to_one_class_of_either_tree() -> None:
    from distributed_comfy.errors import all_errors

    codes = [error.code for error in (*errors.all_errors(), *all_errors())]
    assert sorted(set(codes)) == sorted(codes)
