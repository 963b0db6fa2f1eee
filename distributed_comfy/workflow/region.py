"""The part of a canvas that one tile reads, and the text in which the tiles of an item come to the node that tells the others of them."""
from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields


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


@dataclass(frozen=True)
class TileTask:
    """What one tile of an item is told."""

    region: Region
    seed: int | None = None
    """None: that of the upscale."""
    denoise: float | None = None
    """None: that of the upscale."""


def tasks_text(tasks: Iterable[TileTask]) -> str:
    """The tiles of an item as one literal; what is not told is left out."""
    return json.dumps([_plain(task) for task in tasks], separators=(",", ":"))


def read_tasks(text: str) -> list[TileTask]:
    """The tiles in a text of `tasks_text`."""
    return [
        TileTask(Region(**{name: found[name] for name in _REGION if name in found}), found.get("seed"), found.get("denoise"))
        for found in json.loads(text)
    ]


def _plain(task: TileTask) -> dict[str, int | float]:
    own = {"seed": task.seed, "denoise": task.denoise}
    frames = () if task.region.frames else _FRAMES
    region = {name: value for name, value in asdict(task.region).items() if name not in frames}
    return {**region, **{name: value for name, value in own.items() if value is not None}}


_REGION = tuple(declared.name for declared in fields(Region))
_FRAMES = ("canvas_frames", "first_frame", "frames")
"""Only an item with a part of the frames needs them."""
