"""The part of a canvas that one tile reads: what planning writes into the tile nodes and the engine crops conditioning by."""
from __future__ import annotations

from dataclasses import MISSING, dataclass, fields


@dataclass(frozen=True)
class Region:
    """A box of canvas pixels, and the frames that an item takes from it."""

    canvas_width: int
    canvas_height: int
    left: int
    """Of the box, from the left edge of the canvas."""
    top: int
    width: int
    """Of the box; it lies within the canvas."""
    height: int
    process_width: int
    """Of the crop as it is sampled: not less than ``width``, what is beyond repeats the last column."""
    process_height: int
    canvas_frames: int = 0
    """Frames of the whole canvas; 0 where the item has all of them."""
    first_frame: int = 0
    frames: int = 0
    """Frames of the item; 0 for all."""

    @property
    def across(self) -> RegionAxis:
        """From left to right."""
        return RegionAxis(self.canvas_width, self.left, self.width, self.process_width)

    @property
    def down(self) -> RegionAxis:
        """From top to bottom."""
        return RegionAxis(self.canvas_height, self.top, self.height, self.process_height)


@dataclass(frozen=True)
class RegionAxis:
    """One axis of a region, in canvas pixels."""

    canvas: int
    start: int
    length: int
    process: int

    @property
    def stop(self) -> int:
        """First pixel behind the box."""
        return self.start + self.length


REGION_INPUTS = tuple(declared.name for declared in fields(Region) if declared.default is MISSING)
"""Literal inputs of the tile nodes, all of them required."""
FRAME_INPUTS = tuple(declared.name for declared in fields(Region) if declared.default is not MISSING)
"""Literal inputs of the tile nodes that may be missing: only an item with a part of the frames needs them."""
