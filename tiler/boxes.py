"""Intervals and rectangles of pixels: half open, whole numbers, origin at the top left."""
from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class Size(NamedTuple):
    """Width and height in pixels, in this order everywhere."""

    width: int
    height: int


@dataclass(frozen=True)
class Span:
    """Pixels ``start`` to ``stop - 1`` of one axis."""

    start: int
    stop: int

    @property
    def length(self) -> int:
        """Pixels in the span."""
        return self.stop - self.start


@dataclass(frozen=True)
class Box:
    """A rectangle; ``right`` and ``bottom`` are the first pixels outside."""

    left: int
    top: int
    right: int
    bottom: int

    @property
    def width(self) -> int:
        """Pixels from left to right."""
        return self.right - self.left

    @property
    def height(self) -> int:
        """Pixels from top to bottom."""
        return self.bottom - self.top

    def meets(self, other: Box) -> bool:
        """True if the two share at least one pixel."""
        return self.left < other.right and other.left < self.right and self.top < other.bottom and other.top < self.bottom

    def contains(self, other: Box) -> bool:
        """True if every pixel of ``other`` is in this box."""
        across = self.left <= other.left and other.right <= self.right
        return across and self.top <= other.top and other.bottom <= self.bottom


@dataclass(frozen=True)
class Sides:
    """One number of pixels for each side of a box."""

    left: int
    top: int
    right: int
    bottom: int
