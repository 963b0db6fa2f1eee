"""The master's part of an upscale: plans the tiles, cuts their crops, blends what comes back into the canvas.

In: the image among the spooled results, and refined tiles as they are spooled.  Out: tiles in the table, crops in the blob store, and the
canvas, a file in the spool.  The canvas is made again from image and spooled tiles when a collector starts again, and as tiles are
blended in the plan's order alone, its bytes do not depend on who made which tile, when, or how often.
"""
from __future__ import annotations

import heapq
import logging
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distributed_comfy import messages
from distributed_comfy.collector.assemble import PlacedValue, placed_values
from distributed_comfy.collector.naming import writing
from distributed_comfy.collector.patience import Patience
from distributed_comfy.collector.spool import Spool
from distributed_comfy.collector.table import JobTable
from distributed_comfy.errors import ItemsMissing, UpscaleImageUnusable
from distributed_comfy.messages import ItemSpec, JobRecord, MappingValue, TensorRef, Value
from distributed_comfy.state.jobs import FinishedItem
from distributed_comfy.tile_stage import TileGeometry, ValuePlace
from distributed_comfy.transport.blobs import BlobStore
from distributed_comfy.transport.feed_names import Feed
from distributed_comfy.transport.values import store_value, value_blobs
from distributed_comfy.workflow.classes import EDGE_SLOT
from distributed_comfy.workflow.tile_items import Canvas, TileRow, tile_specs
from tiler.blender import Blender
from tiler.errors import TilerError
from tiler.groups import frame_groups
from tiler.options import SeamFix, TileOptions
from tiler.plan import TilePlan, plan_tiles

log = logging.getLogger(__name__)

CANVAS, IMAGE = "canvas", "image"
"""Files in the spool's folder: the canvas, and the image where tiles read it as it was."""
COLOURS = 3
"""Channels that a model sees; a fourth one (alpha) stays as it is."""
_SEAM_KINDS: dict[str, Any] = {"band_pass": "band"}


@dataclass(frozen=True)
class TileLimits:
    """What bounds the work on tiles."""

    item_bytes: int = 256 * 2**20
    """Pixels of one crop, float32, over all frames of its item."""
    blob_bytes: int = 2**33
    """Largest blob."""
    workers: Callable[[], int] = lambda: 1
    """How many workers can make tiles now; two crops lie ready for each."""
    on_planned: Callable[[int], None] = lambda tiles: None
    """Told how many items the tiles are, once that is known."""


@dataclass(frozen=True)
class Places:
    """Where a job's things lie."""

    table: JobTable
    """Gets the tiles."""
    store: BlobStore
    """Gets crops, and what all tiles share."""
    spool: Spool
    """Holds image and tiles; the canvas becomes a file in it."""


@dataclass
class _Crop:
    """A crop that lies in the blob store until its tile is here."""

    pixels: NDArray[np.float32]
    ref: Value


@dataclass
class _Ready:
    """Tiles whose crop may be cut, in the order in which they are wanted."""

    heap: list[tuple[int, int]] = field(default_factory=list)

    def add(self, group: int, steps: Sequence[int]) -> None:
        for step in steps:
            heapq.heappush(self.heap, (step, group))


class TileWork:
    """One upscale of a job, from the image to the finished canvas.

    Args:
        job: its record; it has `JobRecord.tiles`.
        places: where everything lies.
        patience: waits out both servers.
        limits: bounds.
    """

    def __init__(self, job: JobRecord, places: Places, patience: Patience, limits: TileLimits) -> None:
        assert job.tiles is not None
        self._job, self._stage = job, job.tiles
        self._table, self._store, self._spool = places.table, places.store, places.spool
        self._ask = patience
        self._limits = limits
        self._ready = _Ready()
        self._crops: dict[int, _Crop] = {}
        self._groups: list[tuple[int, int]] = []
        self._blenders: list[Blender] = []
        self._constants: Feed = {}
        self._plan: TilePlan | None = None
        self.canvas: NDArray[np.float32] | None = None
        """[F, H, W, C], being filled; None before `begin`."""

    @property
    def items(self) -> int:
        """Number of tile items; 0 before `begin`."""
        return self._steps * len(self._groups)

    @property
    def done(self) -> bool:
        """Every tile is in the canvas."""
        return bool(self._blenders) and all(blender.schedule.done == self._steps for blender in self._blenders)

    @property
    def _steps(self) -> int:
        return len(self._plan.steps) if self._plan is not None else 0

    def begin(self) -> None:
        """Plan the tiles and enter them in the table; takes in those that an earlier collector spooled.

        Raises:
            UpscaleImageUnusable: the image cannot be tiled.
            OutputUnwritable: the canvas does not fit on the disk.
        """
        try:
            self._open()
        except TilerError as error:
            raise UpscaleImageUnusable(node_id=self._stage.node_id, reason=str(error)) from error
        self._store_constants()
        specs = list(self._specs())
        spooled = [spec.index for spec in specs if self._spool.has(spec.index)]
        finished = [FinishedItem(index, self._spool.claim_id(index) or "", self._spool.result(index)) for index in spooled]
        self._ask.call(self._extend, specs, finished)
        log.info("job %s: %d tiles of upscale %s, %d of them are here", self._job.job_id, len(specs), self._stage.node_id, len(spooled))
        self._limits.on_planned(len(specs))
        for index in spooled:
            self.take(index)
        self._ready = _Ready()
        for group, blender in enumerate(self._blenders):
            self._ready.add(group, blender.cuttable())

    def take(self, index: int) -> None:
        """Blend a spooled tile, as soon as its turn comes.

        Raises:
            UpscaleImageUnusable: the tile has another size than its crop, or is not finite.
        """
        number = index - self._job.first_tile
        group, step = divmod(number, self._steps)
        try:
            self._blenders[group].put(step, self._refined(index))
        except TilerError as error:
            worker = self._spool.result(index).worker
            raise UpscaleImageUnusable(node_id=self._stage.node_id, reason=f"item {index} of worker {worker}: {error}") from error
        self._advance(group)
        crop = self._crops.pop(number, None)
        if crop is not None:
            self._ask.call(self._store.unlink, value_blobs(crop.ref))

    def go_on(self) -> None:
        """Cut crops ahead and let their tiles start."""
        unblocked = []
        most = 2 * max(1, self._limits.workers())
        while self._ready.heap and len(self._crops) < most:
            step, group = heapq.heappop(self._ready.heap)
            if self._blenders[group].schedule.has_arrived(step):
                continue
            number = group * self._steps + step
            pixels = self._blenders[group].cut(step)
            self._advance(group)
            self._crops[number] = _Crop(pixels, self._put(number, pixels))
            unblocked.append((self._job.first_tile + number, messages.dump(self._feed_of(number))))
        if unblocked:
            self._ask.call(self._table.unblock, self._job.job_id, unblocked)

    def ensure(self) -> None:
        """Put back what the blob store lost of the crops and of what all tiles share."""
        crops = dict(self._crops)
        blobs = [blob for crop in crops.values() for blob in value_blobs(crop.ref)]
        if blobs and not all(self._store.exists(blobs)):
            for number, crop in crops.items():
                self._put(number, crop.pixels)
        values = [value for slots in self._constants.values() for values in slots.values() for value in values]
        shared = [blob for value in values for blob in value_blobs(value)]
        if shared and not all(self._store.exists(shared)):
            self._store_constants()

    # -- image and canvas
    def _open(self) -> None:
        values = self._image_values()
        frames, height, width, channels = self._shape(values)
        self._plan = plan_tiles((width, height), tile_options(self._stage.geometry))
        crop_bytes = max(step.size.width * step.size.height for step in self._plan.steps) * min(channels, COLOURS) * 4
        self._groups = list(frame_groups(frames, crop_bytes, self._limits.item_bytes))
        self.canvas = self._filled(CANVAS, values, (frames, height, width, channels))
        image = self._filled(IMAGE, values, self.canvas.shape) if self._plan.reads_image else self.canvas
        self._blenders = [
            Blender(self._plan, image[first:end, ..., :COLOURS], self.canvas[first:end, ..., :COLOURS]) for first, end in self._groups
        ]

    def _image_values(self) -> list[tuple[int, TensorRef]]:
        found = self._values(self._stage.image)
        refs = [(placed.index, placed.value) for placed in found if isinstance(placed.value, TensorRef) and len(placed.value.shape) == 4]
        if not refs or len(refs) != len(found):
            what = "it got no image" if not found else "it got something else than images"
            raise UpscaleImageUnusable(node_id=self._stage.node_id, reason=what)
        return refs

    def _values(self, place: ValuePlace) -> list[PlacedValue]:
        return placed_values(self._spool, place.node_id, place.slot)

    def _shape(self, values: Sequence[tuple[int, TensorRef]]) -> tuple[int, int, int, int]:
        _, height, width, channels = values[0][1].shape
        frames = sum(ref.shape[0] for _, ref in values)
        for index, ref in values:
            if tuple(ref.shape[1:]) != (height, width, channels):
                found = f"item {index} has images of shape {list(ref.shape[1:])}, item {values[0][0]} of {[height, width, channels]}"
                raise UpscaleImageUnusable(node_id=self._stage.node_id, reason=found)
        if frames < 1 or channels not in (COLOURS, COLOURS + 1):
            reason = "it got a batch of no images" if frames < 1 else f"its image has {channels} channel(s), not RGB or RGBA"
            raise UpscaleImageUnusable(node_id=self._stage.node_id, reason=reason)
        return frames, height, width, channels

    def _filled(self, name: str, values: Sequence[tuple[int, TensorRef]], shape: tuple[int, ...]) -> NDArray[np.float32]:
        """A file of the spool with the image's pixels, mapped into memory."""
        path = self._spool.folder / name
        with writing(path), path.open("wb") as file:
            _allocate(file.fileno(), 4 * math.prod(shape))
        canvas: NDArray[np.float32] = np.memmap(path, np.float32, "r+", shape=shape)
        end = 0
        for index, ref in values:
            start, end = end, end + ref.shape[0]
            canvas[start:end] = self._spool.array(index, ref)
        return canvas

    def _refined(self, index: int) -> NDArray[np.float32]:
        captures = [one for one in self._spool.result(index).captures if (one.node_id, one.slot) == (self._stage.node_id, "images")]
        if len(captures) != 1 or not isinstance(captures[0].value, TensorRef):
            raise ItemsMissing(job_id=self._job.job_id, indexes=[index])
        tile = self._spool.array(index, captures[0].value)
        return np.ascontiguousarray(tile[..., :COLOURS], np.float32)

    def _advance(self, group: int) -> None:
        self._ready.add(group, self._blenders[group].advance().to_cut)

    # -- items
    def _specs(self) -> Iterator[ItemSpec]:
        assert self.canvas is not None
        frames, height, width, _ = self.canvas.shape
        kept = {constant.source_id: self._kept_text(constant.source_id) for constant in self._stage.constants}
        return tile_specs(self._stage, self._job.first_tile, Canvas(width, height, frames), self._rows(), kept)

    def _rows(self) -> Iterator[TileRow]:
        assert self._plan is not None
        for group, (first, end) in enumerate(self._groups):
            for step in self._plan.steps:
                yield TileRow(
                    index=group * self._steps + step.index,
                    step=step.index,
                    left=step.read.left,
                    top=step.read.top,
                    width=step.read.width,
                    height=step.read.height,
                    process_width=step.size.width,
                    process_height=step.size.height,
                    denoise=step.denoise,
                    first_frame=first,
                    frames=end - first,
                )

    def _extend(self, specs: Sequence[ItemSpec], finished: Sequence[FinishedItem]) -> bool:
        return self._table.extend(self._job.job_id, specs, finished=finished, final=True)

    # -- blobs
    def _put(self, number: int, pixels: NDArray[np.float32]) -> Value:
        name = f"{self._job.job_id}:crop:{number}"
        return self._ask.call(self._store_value, name, pixels)

    def _store_value(self, name: str, value: Any) -> Value:
        return store_value(self._store, name, value, job_id=self._job.job_id, limit_bytes=self._limits.blob_bytes)

    def _feed_of(self, number: int) -> Feed:
        return {self._stage.pixels: {EDGE_SLOT: (self._crops[number].ref,)}, **self._constants}

    def _store_constants(self) -> None:
        """What all tiles share lies in the blob store once, as long as the job lasts."""
        feed: Feed = {}
        for number, constant in enumerate(self._stage.constants):
            values = self._values(constant.place)
            shared = tuple(self._shared(f"{self._job.job_id}:shared:{number}.{at}", placed) for at, placed in enumerate(values))
            slots = feed.setdefault(constant.source_id, {})
            slots[EDGE_SLOT if constant.place.slot == EDGE_SLOT else constant.place.slot] = shared
        self._constants = feed

    def _shared(self, name: str, placed: PlacedValue) -> Value:
        return self._ask.call(self._store_value, name, self._loaded(placed.index, placed.value))

    def _loaded(self, index: int, value: Value) -> Any:
        if isinstance(value, TensorRef):
            return self._spool.array(index, value)
        if isinstance(value, MappingValue):
            return {key: self._loaded(index, entry) for key, entry in value.entries.items()}
        return value.literal

    def _kept_text(self, source_id: str) -> str:
        """Another text for other values."""
        return messages.content_hash([[messages.to_plain(value) for value in values] for values in self._constants[source_id].values()])


def _allocate(descriptor: int, size_bytes: int) -> None:
    """Take the room on the disk now: a full disk would end the process when a page of the map is written."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, size_bytes)
    else:
        os.truncate(descriptor, size_bytes)


def tile_options(geometry: TileGeometry) -> TileOptions:
    """The user's choices in the words of `tiler`."""
    seam = SeamFix(
        kind=_SEAM_KINDS.get(geometry.seam_fix, geometry.seam_fix),
        width=geometry.seam_fix_width,
        feather=geometry.seam_fix_mask_blur,
        padding=geometry.seam_fix_padding,
        denoise=geometry.seam_fix_denoise,
    )
    return TileOptions(
        tile_width=geometry.tile_width,
        tile_height=geometry.tile_height,
        padding=geometry.padding,
        feather=geometry.mask_blur,
        uniform=geometry.uniform,
        mode=geometry.mode,
        seam_fix=seam if geometry.seam_fix != "none" else SeamFix(),
        seeds=geometry.tile_seeds,
    )
