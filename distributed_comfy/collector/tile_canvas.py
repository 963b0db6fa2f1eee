"""The canvas of an upscale: a file in the spool, filled with tiles from the spool in the plan's order.

In: the image, and word of tiles as they are spooled.  Out: crops, and in the end the upscaled frames.  Tiles that came before their turn
stay in the spool until then, so neither memory nor open files grow with their number.
"""
from __future__ import annotations

import errno
import heapq
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

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


@dataclass(frozen=True, order=True)
class TilePlace:
    """One tile item: a step of the plan, for a group of frames."""

    step: int
    group: int


class TileCanvas:
    """Cuts crops from the canvas and blends spooled tiles into it; the same bytes in whatever order they come, and however often.

    Not for several threads at once.

    Args:
        job: with `JobRecord.tiles`.
        spool: where the image and the tiles lie; the canvas becomes a file there.
        plan: the steps.
        groups: first frame, and one past the last, of each group of frames.
        parts: the image in order; all of one size.
    Raises:
        UpscaleImageUnusable: a frame has NaN or infinite pixels.
        OutputUnwritable: the canvas does not fit on the disk.
    """

    def __init__(
        self, job: JobRecord, spool: Spool, plan: TilePlan, groups: Sequence[tuple[int, int]], parts: Sequence[ImagePart]
    ) -> None:
        assert job.tiles is not None
        self._job, self._spool, self._plan, self._groups = job, spool, plan, groups
        self._node_id = job.tiles.node_id
        self.pixels: NDArray[np.float32] = self._filled(CANVAS, parts)
        """[F, H, W, C], mapped into memory."""
        self._image = self._filled(IMAGE, parts) if plan.reads_image else self.pixels
        self._schedules = [Schedule(plan) for _ in groups]
        self._to_blend: list[list[int]] = [[] for _ in groups]
        self._to_cut: list[TilePlace] = []

    # -- numbers
    @property
    def tiles(self) -> int:
        """Number of tile items."""
        return len(self._plan.steps) * len(self._groups)

    @property
    def done(self) -> bool:
        """Every tile is blended."""
        return all(schedule.done == len(self._plan.steps) for schedule in self._schedules)

    def number(self, place: TilePlace) -> int:
        """Of the item among the tiles, from 0."""
        return place.group * len(self._plan.steps) + place.step

    def place(self, number: int) -> TilePlace:
        """The tile of this number."""
        group, step = divmod(number, len(self._plan.steps))
        return TilePlace(step, group)

    def crop_shape(self, place: TilePlace) -> tuple[int, int, int, int]:
        """Of a tile's crop: frames, height, width, channels."""
        (first, end), size = self._groups[place.group], self._plan.steps[place.step].size
        return end - first, size.height, size.width, COLOURS

    # -- tiles
    def cuttable(self) -> list[TilePlace]:
        """Every tile that may be cut now and is not; looks at all, so ask once and follow `released`."""
        return [TilePlace(step, group) for group, schedule in enumerate(self._schedules) for step in schedule.cuttable()]

    def released(self) -> list[TilePlace]:
        """What may be cut since the last call."""
        found, self._to_cut = self._to_cut, []
        return found

    def has_arrived(self, place: TilePlace) -> bool:
        """Whether the tile is here, blended or not."""
        return self._schedules[place.group].has_arrived(place.step)

    def cut(self, place: TilePlace) -> Pixels:
        """A crop, [F, h, w, 3], the caller's own: keep it, for once its surroundings are blended it cannot be cut again."""
        step = self._plan.steps[place.step]
        source = self._image if step.source == "image" else self.pixels
        crop = cut_tile(self._frames(source, place.group), step)
        self._follow(place.group, self._schedules[place.group].cut(place.step))
        return crop

    def arrive(self, place: TilePlace) -> None:
        """A tile is in the spool: it, and what waited for it, is blended as soon as its turn comes.  Again: nothing.

        Raises:
            UpscaleImageUnusable: a tile has another size than its crop, or is not finite.
        """
        self._follow(place.group, self._schedules[place.group].arrive(place.step))

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
            self._to_cut += [TilePlace(step, group) for step in released.to_cut]
            for step in released.to_blend:
                heapq.heappush(heap, step)
            if not heap:
                return
            step = heapq.heappop(heap)
            self._blend(TilePlace(step, group))
            released = self._schedules[group].blend(step)

    def _blend(self, place: TilePlace) -> None:
        index = self._job.first_tile + self.number(place)
        try:
            blend_tile(self._frames(self.pixels, place.group), self._plan.steps[place.step], self._refined(index))
        except TilerError as error:
            reason = f"item {index} of worker {self._spool.result(index).worker}: {error}"
            raise UpscaleImageUnusable(node_id=self._node_id, reason=reason) from error

    def _refined(self, index: int) -> Pixels:
        captures = [one for one in self._spool.result(index).captures if (one.node_id, one.slot) == (self._node_id, "images")]
        if len(captures) != 1 or not isinstance(captures[0].value, TensorRef):
            raise ItemsMissing(job_id=self._job.job_id, indexes=[index])
        return np.ascontiguousarray(self._spool.array(index, captures[0].value)[..., :COLOURS], np.float32)

    def _frames(self, pixels: Pixels, group: int) -> Pixels:
        first, end = self._groups[group]
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
