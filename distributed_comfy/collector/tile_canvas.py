"""The canvas of an upscale: a file in the spool, filled with tiles from the spool in the plan's order.

In: the image, and word of tiles as they are spooled.  Out: crops, and in the end the upscaled frames.  Tiles that came before their turn
stay in the spool until then, so neither memory nor open files grow with their number.
"""
from __future__ import annotations

import errno
import heapq
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from distributed_comfy.collector.assemble import values_of_item
from distributed_comfy.collector.naming import writing
from distributed_comfy.collector.spool import Spool
from distributed_comfy.errors import ItemsMissing, UpscaleImageUnusable
from distributed_comfy.messages import JobRecord, TensorRef
from tiler.blend import blend_tile
from tiler.crop import Pixels, all_finite, cut_tile
from tiler.errors import TilerError
from tiler.plan import TilePlan
from tiler.schedule import Released, Schedule

CANVAS, IMAGE = "canvas", "image"
"""Files in the spool's folder: the canvas, and the image where tiles read it as it was."""
COLOURS = 3
"""Channels that a model sees; a fourth one (alpha) stays as it is."""
PREVIEW_SIDE = 512
"""Longest side of a preview, in pixels."""
_CANNOT_ALLOCATE = {errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL}
_ZEROS = bytes(2**20)


@dataclass(frozen=True)
class ImagePart:
    """A batch of the image to upscale, in the spool."""

    index: int
    """The item that made it."""
    ref: TensorRef
    """[B, H, W, 3 or 4]."""


@dataclass(frozen=True)
class Division:
    """How the work of a plan is divided into items: each some steps, for a group of frames."""

    steps: Sequence[tuple[int, ...]]
    """The steps of an item, as `tiler.groups.group_steps` gives them."""
    groups: Sequence[tuple[int, int]]
    """First frame, and one past the last, of each group."""

    @property
    def items(self) -> int:
        """How many there are."""
        return len(self.steps) * len(self.groups)

    def place(self, number: int) -> TilePlace:
        """What the item of this number, from 0, is."""
        group, at = divmod(number, len(self.steps))
        return TilePlace(self.steps[at], group)


@dataclass(frozen=True)
class TilePlace:
    """What one item is."""

    steps: tuple[int, ...]
    """Of the plan, in its order."""
    group: int
    """Of frames."""


class TileCanvas:
    """Cuts crops from the canvas and blends spooled tiles into it; the same bytes in whatever order they come, and however often.

    Not for several threads at once.

    Args:
        job: with `JobRecord.tiles`.
        spool: where the image and the tiles lie; the canvas becomes a file there.
        plan: the steps.
        division: the items; `number` below is an item's among them.
        parts: the image in order; all of one size.
    Raises:
        UpscaleImageUnusable: a frame has NaN or infinite pixels.
        OutputUnwritable: the canvas does not fit on the disk.
    """

    def __init__(self, job: JobRecord, spool: Spool, plan: TilePlan, division: Division, parts: Sequence[ImagePart]) -> None:
        assert job.tiles is not None
        self._job, self._spool, self._plan, self.division = job, spool, plan, division
        self._node_id = job.tiles.node_id
        self.pixels: NDArray[np.float32] = self._filled(CANVAS, parts)
        """[F, H, W, C], mapped into memory."""
        self._image = self._filled(IMAGE, parts) if plan.reads_image else self.pixels
        self._schedules = [Schedule(plan) for _ in division.groups]
        self._to_blend: list[list[int]] = [[] for _ in division.groups]
        self._item_of = {step: at for at, steps in enumerate(division.steps) for step in steps}
        """Step -> number of its item in the first group of frames."""
        self._uncuttable = [[len(steps) for steps in division.steps] for _ in division.groups]
        """For each group and item the steps that may not be cut yet."""
        self._to_cut: list[int] = []
        for group, schedule in enumerate(self._schedules):
            self._count_cuttable(group, schedule.cuttable())

    # -- numbers
    @property
    def done(self) -> bool:
        """Every tile is blended."""
        return all(schedule.done == len(self._plan.steps) for schedule in self._schedules)

    def crop_shapes(self, number: int) -> list[tuple[int, int, int, int]]:
        """Of each crop of an item: frames, height, width, channels."""
        place = self.division.place(number)
        first, end = self.division.groups[place.group]
        sizes = (self._plan.steps[step].size for step in place.steps)
        return [(end - first, size.height, size.width, COLOURS) for size in sizes]

    # -- tiles
    def released(self) -> list[int]:
        """Items that may be cut since the last call, or since the beginning: all of their steps may."""
        found, self._to_cut = self._to_cut, []
        return found

    def has_arrived(self, number: int) -> bool:
        """Whether the item's tiles are here, blended or not."""
        place = self.division.place(number)
        return self._schedules[place.group].has_arrived(place.steps[0])

    def cut(self, number: int) -> list[Pixels]:
        """The crops of an item, each [F, h, w, 3], the caller's own: keep them, for once their surroundings are blended they cannot be
        cut again."""
        place = self.division.place(number)
        crops = [cut_tile(self._frames(self._source(step), place.group), self._plan.steps[step]) for step in place.steps]
        for step in place.steps:
            self._follow(place.group, self._schedules[place.group].cut(step))
        return crops

    def arrive(self, number: int) -> None:
        """An item is in the spool: its tiles, and what waited for them, are blended as soon as their turn comes.  Again: nothing.

        Raises:
            UpscaleImageUnusable: a tile has another size than its crop, or is not finite, or the item has another number of tiles.
        """
        place = self.division.place(number)
        for step in place.steps:
            self._follow(place.group, self._schedules[place.group].arrive(step))

    def preview(self) -> NDArray[np.uint8]:
        """The first frame as far as it is, [h, w, 3]: every nth pixel."""
        height, width = self.pixels.shape[1:3]
        every = -(-max(height, width) // PREVIEW_SIDE)
        small = np.array(self.pixels[0, ::every, ::every, :COLOURS])
        preview: NDArray[np.uint8] = (np.clip(small, 0, 1) * 255 + 0.5).astype(np.uint8)
        return preview

    # -- inside
    def _follow(self, group: int, released: Released) -> None:
        """Blend every tile whose turn it is."""
        heap = self._to_blend[group]
        while True:
            self._count_cuttable(group, released.to_cut)
            for step in released.to_blend:
                heapq.heappush(heap, step)
            if not heap:
                return
            step = heapq.heappop(heap)
            self._blend(step, group)
            released = self._schedules[group].blend(step)

    def _count_cuttable(self, group: int, steps: Iterable[int]) -> None:
        left = self._uncuttable[group]
        for step in steps:
            item = self._item_of[step]
            left[item] -= 1
            if not left[item]:
                self._to_cut.append(group * len(self.division.steps) + item)

    def _blend(self, step: int, group: int) -> None:
        item = self._item_of[step]
        index = self._job.first_tile + group * len(self.division.steps) + item
        try:
            tile = self._refined(index, self.division.steps[item].index(step), len(self.division.steps[item]))
            blend_tile(self._frames(self.pixels, group), self._plan.steps[step], tile)
        except TilerError as error:
            reason = f"item {index} of worker {self._spool.result(index).worker}: {error}"
            raise UpscaleImageUnusable(node_id=self._node_id, reason=reason) from error

    def _refined(self, index: int, position: int, tiles: int) -> Pixels:
        """The tile at a position of its item."""
        result = self._spool.result(index)
        found = values_of_item(index, result, self._node_id, "images")
        if len(found) != tiles:
            reason = f"item {index} of worker {result.worker} came back with {len(found)} image(s), it has {tiles} tile(s)"
            if result.blocked:
                reason += f"; nothing reached {', '.join(result.blocked)}: a node before it was blocked or skipped"
            raise UpscaleImageUnusable(node_id=self._node_id, reason=reason)
        ref = found[position].value
        if not isinstance(ref, TensorRef):
            raise ItemsMissing(job_id=self._job.job_id, indexes=[index])
        return np.ascontiguousarray(self._spool.array(index, ref)[..., :COLOURS], np.float32)

    def _source(self, step: int) -> Pixels:
        return self._image if self._plan.steps[step].source == "image" else self.pixels

    def _frames(self, pixels: Pixels, group: int) -> Pixels:
        first, end = self.division.groups[group]
        return pixels[first:end, ..., :COLOURS]

    def _filled(self, name: str, parts: Sequence[ImagePart]) -> NDArray[np.float32]:
        """A new file of the spool with the image's pixels, mapped into memory."""
        shape = (sum(part.ref.shape[0] for part in parts), *parts[0].ref.shape[1:])
        path = self._spool.folder / name
        with writing(path):
            _make_file(path, 4 * math.prod(shape))
            filled: NDArray[np.float32] = np.memmap(path, np.float32, "r+", shape=shape)
        for number, (index, frame) in enumerate(self._frames_of(parts)):
            if not all_finite(frame):
                reason = f"frame {number} of its image (item {index}) has NaN or infinite pixels; a VAE of higher precision may help"
                raise UpscaleImageUnusable(node_id=self._node_id, reason=reason)
            filled[number] = frame
        return filled

    def _frames_of(self, parts: Sequence[ImagePart]) -> Iterator[tuple[int, NDArray[Any]]]:
        for part in parts:
            for frame in self._spool.array(part.index, part.ref):
                yield part.index, frame


def _make_file(path: Path, size_bytes: int) -> None:
    """A file of zeros that has its room on the disk: a full disk would end the process when a page of a map is written."""
    path.unlink(missing_ok=True)  # not cut short: whoever has mapped an earlier one keeps that
    try:
        with path.open("wb") as file:
            _allocate(file, size_bytes)
    except OSError:
        path.unlink(missing_ok=True)
        raise


def _allocate(file: IO[bytes], size_bytes: int) -> None:
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(file.fileno(), 0, size_bytes)
            return
        except OSError as error:
            if error.errno not in _CANNOT_ALLOCATE:
                raise
    for start in range(0, size_bytes, len(_ZEROS)):
        file.write(_ZEROS[: size_bytes - start])
