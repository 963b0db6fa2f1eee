"""The plan: every step of a tiled canvas with its boxes, its order and what it waits for.  From sizes alone, no pixels.

In: the size of the canvas and the user's options. Out: a `TilePlan`, the same on every host, that cut, blend and schedule follow.
"""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from tiler.boxes import Box, Sides, Size, Span
from tiler.dependencies import Dependencies, Offset, Place, Rules
from tiler.errors import TileOptionInvalid, TooManyTiles
from tiler.options import TileOptions, check_options, step_seed
from tiler.passes import PassName, Strip, TilePass, plan_passes

PLAN_VERSION = 1
"""Raise it with every change that gives other steps, or other items of `tiler.groups`, for the same sizes and options: a run takes over the
tiles of an unfinished one where it is the same."""
MOST_STEPS = 2**18
"""16384 x 16384 in tiles of 64 with every seam fix fits."""
AROUND = tuple((x, y) for y in (-1, 0, 1) for x in (-1, 0, 1) if (x, y) != (0, 0))
"""The eight neighbours of a step, row by row."""


@dataclass(frozen=True)
class TileStep:
    """One tile to be cut, refined and blended."""

    index: int
    """Position in plan order, from 0."""
    pass_name: PassName
    """``tiles``, or the pass of the seam fix."""
    row: int
    """In its pass, from 0."""
    column: int
    cell: Box
    """What is this tile's alone; its borders are the middles of the ramps."""
    write: Box
    """What the tile changes: the cell and half a ramp beyond it."""
    read: Box
    """What the model sees; contains `write`."""
    size: Size
    """Of the crop: `read`, continued at right and bottom up to multiples of 8."""
    ramps: Sides
    """Full width of the ramp on each side, its middle on the cell's border; 0 at the canvas' edge, which may also cut a ramp short."""
    later: tuple[tuple[int, int], ...]
    """Neighbours (columns to the right, rows down) of the same pass that are blended after this one and overlap it."""
    source: Literal["canvas", "image"]
    """Cut from the canvas, with what the steps before left there, or from the image as it was."""
    waits_for: tuple[int, ...]
    """Steps to be blended before this one may be cut."""
    blend_after: tuple[int, ...]
    """Steps to be blended before this one may be blended, beyond those in `waits_for`."""
    blend_after_cut: tuple[int, ...]
    """Steps to be cut before this one may be blended, because it changes what they read."""
    denoise: float | None = None
    """Only carried along; None: as the job says."""


@dataclass(frozen=True)
class TilePlan:
    """All steps for one canvas."""

    size: Size
    """Of the canvas."""
    options: TileOptions
    steps: tuple[TileStep, ...]
    """In plan order."""

    @property
    def reads_image(self) -> bool:
        """True if steps read the image as it was, so that it must be kept beside the canvas."""
        return self.options.mode == "independent"

    def seed(self, index: int, base: int) -> int:
        """The seed of a step, from the job's own; 0 to 2^64 - 1."""
        return step_seed(self.options, base, index)


def plan_tiles(size: tuple[int, int], options: TileOptions | None = None) -> TilePlan:
    """Plan every step for one canvas.

    Args:
        size: width and height of the canvas in pixels, at least 1 x 1.
        options: how it is tiled; the defaults without.
    Returns:
        the plan; equal arguments give equal plans.
    Raises:
        TileOptionInvalid: an option, or the size, cannot work.
        TooManyTiles: more than `MOST_STEPS` steps.
    """
    options = options or TileOptions()
    canvas = Size(*size)
    if min(canvas) < 1:
        raise TileOptionInvalid(option="size", value=f"{canvas.width} x {canvas.height}", expected="at least 1 x 1 pixels")
    check_options(options)
    if canvas.width * canvas.height > MOST_STEPS * options.tile.width * options.tile.height:
        # Said before the axes are made: a canvas of absurd size has absurdly many columns.
        _refuse(canvas, -(-canvas.width // options.tile.width) * -(-canvas.height // options.tile.height))
    passes = plan_passes(canvas, options)
    steps = sum(each.steps for each in passes)
    if steps > MOST_STEPS:
        _refuse(canvas, steps)
    return TilePlan(canvas, options, tuple(_steps(passes, Dependencies(passes, options.mode))))


def _refuse(canvas: Size, steps: int) -> None:
    raise TooManyTiles(width=canvas.width, height=canvas.height, steps=steps, limit=MOST_STEPS)


@dataclass(frozen=True)
class _Pattern:
    """What all steps of one kind have in common."""

    later: tuple[tuple[int, int], ...]
    rules: Rules


def _steps(passes: Sequence[TilePass], dependencies: Dependencies) -> Iterator[TileStep]:
    places = [Place(number, row, column) for number, each in enumerate(passes)
              for row in range(len(each.rows)) for column in range(len(each.columns))]  # fmt: skip
    places.sort(key=dependencies.rank)
    index: dict[tuple[int, int, int], int] = {place: at for at, place in enumerate(places)}
    patterns: dict[tuple[int, int, int], _Pattern] = {}

    def numbered(place: Place, offsets: tuple[Offset, ...]) -> tuple[int, ...]:
        return tuple(sorted([index[number, place.row + rows, place.column + columns] for number, rows, columns in offsets]))

    for at, place in enumerate(places):
        kind = dependencies.kind(place)
        if kind not in patterns:
            patterns[kind] = _Pattern(_later_neighbours(passes[place.number], place, dependencies), dependencies.rules(place))
        tiles, pattern = passes[place.number], patterns[kind]
        column, row, rules = tiles.columns[place.column], tiles.rows[place.row], pattern.rules
        yield TileStep(
            index=at,
            pass_name=tiles.name,
            row=place.row,
            column=place.column,
            cell=_box(column.cell, row.cell),
            write=_box(column.write, row.write),
            read=_box(column.read, row.read),
            size=Size(column.length, row.length),
            ramps=Sides(column.low_ramp, row.low_ramp, column.high_ramp, row.high_ramp),
            later=pattern.later,
            source="image" if dependencies.reads_image(place) else "canvas",
            waits_for=numbered(place, rules.blended_before_cut),
            blend_after=numbered(place, rules.blended_before_blend),
            blend_after_cut=numbered(place, rules.cut_before_blend),
            denoise=tiles.denoise,
        )


def _box(across: Span, down: Span) -> Box:
    return Box(across.start, down.start, across.stop, down.stop)


def _later_neighbours(tiles: TilePass, place: Place, dependencies: Dependencies) -> tuple[tuple[int, int], ...]:
    column, row = tiles.columns[place.column], tiles.rows[place.row]
    x, y = _directions(column, joins=tiles.joins_columns), _directions(row, joins=tiles.joins_rows)
    around = ((right, down) for right, down in AROUND if right in x and down in y)
    rank, rank_of = dependencies.rank(place), dependencies.rank
    return tuple((right, down) for right, down in around if rank_of(Place(place.number, place.row + down, place.column + right)) > rank)


def _directions(strip: Strip, *, joins: bool) -> tuple[int, ...]:
    """Where on this axis a neighbour overlaps the strip: at itself, and beyond a ramp that it shares."""
    low = (-1,) if joins and strip.low_ramp else ()
    high = (1,) if joins and strip.high_ramp else ()
    return (*low, 0, *high)
