"""A canvas that fills with tiles, in whatever order they come: `Schedule` with the pixels in memory (or in memory maps)."""
from __future__ import annotations

import heapq
import zlib
from dataclasses import dataclass

import numpy as np

from tiler.blend import blend_tile, check_tile
from tiler.crop import Pixels, check_image, cut_tile
from tiler.errors import CropGone, DuplicateDiffers, ImageInvalid, TileMissing
from tiler.plan import TilePlan, TileStep
from tiler.schedule import Released, Schedule

MOST_NAMED = 20
"""Missing tiles that an error lists."""


@dataclass(frozen=True)
class Progress:
    """What `Blender.advance` did; indexes in the order in which it happened."""

    blended: tuple[int, ...]
    to_cut: tuple[int, ...]
    """Steps that may be cut from now on."""


class Blender:
    """Cuts crops from a canvas and blends tiles into it, in plan order as far as pixels are shared.

    The same tiles give the same bytes, whatever the order in which they come, and however often. Not for several threads at once.

    Args:
        plan: the steps; its size must be the image's.
        image: [F, H, W, C] float32, only read.
        canvas: blended into, of the same shape and with the image's pixels at the start; a copy of the image is made without. It may be
            the image itself where ``plan.reads_image`` is False.
    Raises:
        ImageInvalid: the image cannot be tiled (see `check_image`), or the canvas does not fit.
    """

    def __init__(self, plan: TilePlan, image: Pixels, canvas: Pixels | None = None) -> None:
        check_image(image, plan.size)
        self.schedule = Schedule(plan)
        """How far it is; only to be asked."""
        self.canvas = image.copy() if canvas is None else canvas
        """The image as far as it is refined."""
        self._image = image
        self._check_canvas()
        self._waiting: dict[int, Pixels] = {}
        self._to_blend: list[int] = []  # a heap
        self._to_cut: list[int] = []
        self._digests: dict[int, bytes] = {}

    def cuttable(self) -> list[int]:
        """Every step that may be cut now and is not, in plan order; looks at all steps, so ask once and follow `Progress.to_cut`."""
        return self.schedule.cuttable()

    def cut(self, index: int) -> Pixels:
        """The crop of a step; again the same pixels, as long as nothing else was blended into them.

        Returns:
            [F, h, w, C] float32, the caller's own. Keep it until the tile is here.
        Raises:
            TileNotReady: it reads what is not blended yet.
            CropGone: it was cut before, and what it read has changed since.
            TileUnknown: the plan has no such step.
        """
        is_repeated = self.schedule.is_cut(index)
        self._releasing(self.schedule.cut(index))
        step = self.schedule.plan.steps[index]
        if step.source == "image":
            return cut_tile(self._image, step)
        if is_repeated and self._has_changed(step):
            raise CropGone(index=index)
        return cut_tile(self.canvas, step)

    def put(self, index: int, tile: Pixels, digest: bytes | None = None) -> None:
        """A refined tile has come; `advance` blends it as soon as its turn is. A second, equal one changes nothing.

        Args:
            tile: [F, h, w, C] float32 of the step's size; kept as it is until it is blended, so do not write to it.
            digest: a checksum of the pixels, where the caller has one; give it always or never.
        Raises:
            DuplicateDiffers: the step has come before, with other pixels.
            TileShapeError, TileNotFinite, TileUnknown: it does not fit the plan.
        """
        is_known = self.schedule.has_arrived(index)
        check_tile(self.canvas, self.schedule.plan.steps[index], tile)
        digest = digest or zlib.crc32(np.ascontiguousarray(tile).data).to_bytes(4, "big")
        if is_known and self._digests[index] != digest:
            raise DuplicateDiffers(index=index)
        if not is_known:
            self._digests[index] = digest
            self._waiting[index] = tile
            self._releasing(self.schedule.arrive(index))

    def advance(self) -> Progress:
        """Blend every tile whose turn it is; call it after `put`, and after `cut`, which may let waiting tiles go on."""
        blended = []
        while self._to_blend:
            index = heapq.heappop(self._to_blend)
            blend_tile(self.canvas, self.schedule.plan.steps[index], self._waiting.pop(index))
            blended.append(index)
            self._releasing(self.schedule.blend(index))
        to_cut, self._to_cut = self._to_cut, []
        return Progress(tuple(blended), tuple(to_cut))

    def finish(self) -> Pixels:
        """The canvas, complete.

        Raises:
            TileMissing: steps are not blended, with the first of their indexes.
        """
        missing = self.schedule.missing()
        if missing:
            raise TileMissing(count=len(missing), steps=len(self.schedule.plan.steps), indexes=missing[:MOST_NAMED])
        return self.canvas

    def _releasing(self, released: Released) -> None:
        self._to_cut += released.to_cut
        for index in released.to_blend:
            heapq.heappush(self._to_blend, index)

    def _has_changed(self, step: TileStep) -> bool:
        """True if the step itself, or a later one, was blended into what it reads; looks at all later steps."""
        later = self.schedule.plan.steps[step.index :]
        return any(self.schedule.is_blended(other.index) and other.write.meets(step.read) for other in later)

    def _check_canvas(self) -> None:
        expected = f"a writable float32 array of shape {list(self._image.shape)}"
        if self.canvas.shape != self._image.shape or self.canvas.dtype != np.float32 or not self.canvas.flags.writeable:
            raise ImageInvalid(problem=f"has a canvas of {self.canvas.dtype} {list(self.canvas.shape)}", expected=expected)
        if self.schedule.plan.reads_image and np.may_share_memory(self.canvas, self._image):
            raise ImageInvalid(problem="is its own canvas, but this plan reads the image as it was", expected="a copy of the canvas")
