"""A tiled redraw as docs/tiles.md describes it, in the mode `linear`, worked out anew: nothing of `tiler` or the cluster is used here.

One tile after the other in rows: cut what it reads, have it redrawn, mix it into the canvas with its share at every pixel.
"""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy
from numpy.typing import NDArray

Floats = NDArray[numpy.float32]
Span = tuple[int, int]
"""First pixel and one past the last."""


@dataclass(frozen=True)
class Rules:
    """What the user chose, in pixels; the feather is narrower than every cell."""

    tile: int
    padding: int
    feather: int


def redraw(image: Floats, rules: Rules, redraw_crop: Callable[[Floats], Floats]) -> Floats:
    """The canvas after all tiles; ``image`` is [1, H, W, C]."""
    canvas = image.copy()
    height, width = image.shape[1:3]
    tiles = [(row, column) for row in cells(height, rules.tile) for column in cells(width, rules.tile)]
    for number, (row, column) in enumerate(tiles):
        down, across = read_span(row, height, rules), read_span(column, width, rules)
        weights = [
            ramp(row, down, height, rules.feather)[:, None] * ramp(column, across, width, rules.feather) for row, column in tiles[number:]
        ]
        inside = canvas[:, slice(*down), slice(*across)]
        tile = redraw_crop(with_sides_of_eight(inside))[:, : inside.shape[1], : inside.shape[2]]
        mix(inside, tile, share(weights[0], sum(weights[1:], numpy.zeros(weights[0].shape))))
    return canvas


def mix(inside: Floats, tile: Floats, share: Floats) -> None:
    """Put a tile into its place; pixels that it leaves as they are keep their bits, and a whole share is the tile's own."""
    mixed = inside + share * (tile - inside)
    inside[:] = numpy.where(share == 1, tile, numpy.where((share > 0) & (tile != inside), mixed, inside))


def share(weight: NDArray[numpy.float64], to_come: NDArray[numpy.float64]) -> Floats:
    """How much of a tile goes into each pixel [h, w, 1]: its weight, where the tiles to come have not taken all."""
    shares = numpy.divide(weight, 1 - to_come, out=numpy.zeros(weight.shape), where=weight > 0)
    return shares.astype(numpy.float32)[:, :, None]


def cells(size: int, tile: int) -> list[Span]:
    """The canvas cut from its beginning; the last cell ends with it."""
    return [(start, min(start + tile, size)) for start in range(0, size, tile)]


def read_span(cell: Span, size: int, rules: Rules) -> Span:
    """What the model sees of one axis: all tiles as much, moved inwards at the edge."""
    beyond = max(rules.padding, rules.feather // 2)
    length = min(size, rules.tile + 2 * beyond)
    start = min(max(0, cell[0] - beyond), size - length)
    return start, start + length


def with_sides_of_eight(crop: Floats) -> Floats:
    """The last column and row again, until both sides are multiples of 8."""
    missing = [(0, 0), (0, -crop.shape[1] % 8), (0, -crop.shape[2] % 8), (0, 0)]
    return numpy.ascontiguousarray(numpy.pad(crop, missing, mode="edge"))


def ramp(cell: Span, part: Span, size: int, feather: int) -> NDArray[numpy.float64]:
    """A tile's weight along a part of one axis: 1 in its cell, 0 outside, straight over the feather round a seam; the edge is no seam."""
    centres = numpy.arange(*part) + 0.5
    rising = numpy.ones(len(centres)) if cell[0] == 0 else (centres - cell[0]) / feather + 0.5
    falling = numpy.ones(len(centres)) if cell[1] == size else (cell[1] - centres) / feather + 0.5
    return numpy.clip(numpy.minimum(rising, falling), 0, 1)
