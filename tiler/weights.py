"""How much of each pixel a tile takes over when it is blended.

Every tile has a weight at every pixel: its ramp along x times its ramp along y. The tiles of a pass share the canvas, so there the weights
of all that cover a pixel add up to 1; beside a seam step, the rest of the weight is that of the canvas below. Tiles are blended one after
the other, and each takes its weight's share of what the *later* ones leave::

    alpha = weight / (1 - sum of the weights of the later tiles here)

In the end each tile is in each pixel with exactly its weight, corners included, whatever the order. The first tile on a pixel takes all of
it (alpha is 1), so nothing unrefined stays. All sums are of whole numbers (a ramp of n pixels counts in units of 1 / 2n), so
alpha is exactly 1 where it should be.
"""
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tiler.boxes import Span
from tiler.plan import TileStep

Weights = NDArray[np.float64]


@dataclass(frozen=True)
class Zone:
    """A part of a write box in which one rule holds, in pixels of the canvas."""

    x: Span
    y: Span
    alpha: NDArray[np.float32] | None
    """Share that the tile takes, to be broadcast over [height, width]; None: all of it."""


@dataclass(frozen=True)
class _Part:
    """One axis of a zone: a ramp, or the middle."""

    span: Span
    side: int
    """-1: the ramp at the low end, 1: at the high end, 0: between them."""
    own: Weights
    """The step's weight here, in units of the whole; one number in the middle."""
    whole: int
    """The units of weight 1."""

    def weight(self, neighbour: int) -> Weights:
        """Of the neighbour on this axis (-1, 0 for the step itself, 1)."""
        if neighbour == 0:
            return self.own
        return self.whole - self.own if neighbour == self.side else np.zeros(1)


def zones(step: TileStep) -> Iterator[Zone]:
    """The write box in up to nine zones that do not overlap: the middle, four sides, four corners."""
    down = list(_parts(Span(step.write.top, step.write.bottom), Span(step.cell.top, step.cell.bottom), (step.ramps.top, step.ramps.bottom)))
    for part in _parts(Span(step.write.left, step.write.right), Span(step.cell.left, step.cell.right), (step.ramps.left, step.ramps.right)):
        for below in down:
            yield Zone(part.span, below.span, _alpha(part, below, step.later))


def _parts(write: Span, cell: Span, ramps: tuple[int, int]) -> Iterator[_Part]:
    low, high = ramps
    whole = 2 * max(low, high, 1)
    low_end = min(write.start + low, write.stop)
    high_start = max(low_end, cell.stop - high // 2) if high else write.stop
    if low:
        yield _Part(Span(write.start, low_end), -1, _rising(write.start - (cell.start - low // 2), low_end - write.start), whole)
    if low_end < high_start:
        yield _Part(Span(low_end, high_start), 0, np.full(1, whole, np.float64), whole)
    if high_start < write.stop:
        rising = _rising(high_start - (cell.stop - high // 2), write.stop - high_start)
        yield _Part(Span(high_start, write.stop), 1, whole - rising, whole)


def _rising(first: int, count: int) -> Weights:
    """Weights of the pixels ``first`` on of a ramp: those of their middles, in units of half a pixel."""
    return 2 * np.arange(first, first + count, dtype=np.float64) + 1


def _alpha(x: _Part, y: _Part, later: tuple[tuple[int, int], ...]) -> NDArray[np.float32] | None:
    weight: Weights = np.outer(y.own, x.own)
    left_over = x.whole * y.whole - sum(np.outer(y.weight(down), x.weight(right)) for right, down in later)
    if np.all(weight == left_over):
        return None
    return np.asarray(weight / left_over, np.float32)
