"""The passes of a plan.  Each is columns times rows, so all of its geometry is that of two axes.

The first pass tiles the canvas. A seam fix adds passes whose columns, rows or both lie across the seams of the first.
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tiler.boxes import Size, Span
from tiler.options import TILE_STEP, TileOptions, even, seam_feather

PassName = Literal["tiles", "vertical_seams", "horizontal_seams", "crossings"]


@dataclass(frozen=True)
class Strip:
    """One column or row of a pass, along its axis."""

    cell: Span
    write: Span
    """The cell and half a ramp beyond it on each side that is not the canvas' edge."""
    read: Span
    """What the model sees; contains `write`."""
    length: int
    """Of the crop: `read`, rounded up to a multiple of 8."""
    low_ramp: int
    """Width of the ramp at the low end, its middle on the cell's end; 0 at the canvas' edge."""
    high_ramp: int
    """As `low_ramp`, at the high end; the canvas' edge may cut it short."""


@dataclass(frozen=True)
class Axis:
    """What decides the strips of one axis of one pass."""

    canvas: int
    tile: int
    feather: int
    padding: int
    uniform: bool

    def cells(self) -> tuple[Strip, ...]:
        """Strips side by side from 0 on; the last one ends with the canvas."""
        starts = range(0, self.canvas, self.tile)
        return tuple(self._strip(start, min(start + self.tile, self.canvas), self.tile) for start in starts)

    def seams(self, width: int) -> tuple[Strip, ...]:
        """Strips of ``width`` with their middle on each border between two cells."""
        starts = range(self.tile - width // 2, self.canvas - width // 2, self.tile)
        return tuple(self._strip(start, min(start + width, self.canvas), width) for start in starts)

    def _strip(self, start: int, stop: int, width: int) -> Strip:
        low, high = self.feather * (start > 0), self.feather * (stop < self.canvas)
        write = Span(start - low // 2, min(stop + high // 2, self.canvas))
        read = self._read(start, stop, width)
        return Strip(Span(start, stop), write, read, -(-read.length // TILE_STEP) * TILE_STEP, low, high)

    def _read(self, start: int, stop: int, width: int) -> Span:
        beyond = max(self.padding, self.feather // 2)
        if not self.uniform:
            return Span(max(0, start - beyond), min(self.canvas, stop + beyond))
        length = min(self.canvas, width + 2 * beyond)
        inside = min(max(0, start - beyond), self.canvas - length)
        return Span(inside, inside + length)


@dataclass(frozen=True)
class TilePass:
    """Steps that are alike: one for each column and row."""

    name: PassName
    columns: tuple[Strip, ...]
    rows: tuple[Strip, ...]
    joins_columns: bool
    """Neighbouring columns meet and fade into each other; else they fade into what lies below."""
    joins_rows: bool
    """As `joins_columns`."""
    denoise: float | None = None
    """Only carried along; None: as the job says."""

    @property
    def steps(self) -> int:
        """How many steps it has."""
        return len(self.columns) * len(self.rows)


def plan_passes(canvas: Size, options: TileOptions) -> tuple[TilePass, ...]:
    """The passes in their order; those without a step are left out."""
    feather, padding = even(options.feather), options.padding
    x, y = _axes(canvas, options, Size(feather, feather), Size(padding, padding))
    first = TilePass("tiles", x.cells(), y.cells(), joins_columns=True, joins_rows=True)
    return tuple(each for each in (first, *_seam_passes(canvas, options)) if each.steps)


def _axes(canvas: Size, options: TileOptions, feather: Size, padding: Size) -> tuple[Axis, Axis]:
    x, y = (Axis(*numbers, options.uniform) for numbers in zip(canvas, options.tile, feather, padding, strict=True))
    return x, y


def _seam_passes(canvas: Size, options: TileOptions) -> tuple[TilePass, ...]:
    seam, feather = options.seam_fix, seam_feather(options)
    if seam.kind == "none":
        return ()
    if seam.kind == "band":
        width, padding = Size(even(seam.width), even(seam.width)), Size(seam.padding, seam.padding)
    else:
        # A half tile ends where its ramps end: side by side two of them touch and never overlap.
        width = Size(options.tile.width - feather.width, options.tile.height - feather.height)
        padding = Size(seam.padding + feather.width // 2, seam.padding + feather.height // 2)
    x, y = _axes(canvas, options, feather, padding)
    cells_x, cells_y, across_x, across_y = x.cells(), y.cells(), x.seams(width.width), y.seams(width.height)
    vertical = TilePass("vertical_seams", across_x, cells_y, joins_columns=False, joins_rows=True, denoise=seam.denoise)
    horizontal = TilePass("horizontal_seams", cells_x, across_y, joins_columns=True, joins_rows=False, denoise=seam.denoise)
    crossings = TilePass("crossings", across_x, across_y, joins_columns=False, joins_rows=False, denoise=seam.denoise)
    return (vertical, horizontal, crossings) if seam.kind == "half_tile_intersections" else (vertical, horizontal)
