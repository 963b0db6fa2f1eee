"""The master's part of an upscale: plans the tiles and their items, cuts crops, blends what comes back into the canvas.

In: the image among the spooled results, and refined tiles as they are spooled.  Out: tiles in the table, crops in the blob store, and the
canvas, a file in the spool.  The canvas is made again from image and spooled tiles when a collector starts again, and as tiles are
blended in the plan's order alone, its bytes do not depend on who made which tile, when, or how often.
"""
from __future__ import annotations

import heapq
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from distributed_comfy.collector.assemble import PlacedValue, placed_values
from distributed_comfy.collector.gaps import stand_ins
from distributed_comfy.collector.patience import Patience
from distributed_comfy.collector.spool import Spool
from distributed_comfy.collector.table import JobTable
from distributed_comfy.collector.tile_blobs import SharedValues, TileBlobs
from distributed_comfy.collector.tile_canvas import COLOURS, Division, ImagePart, TileCanvas
from distributed_comfy.errors import MessageVersionUnknown, UpscaleImageUnusable
from distributed_comfy.messages import ItemSpec, JobRecord, TensorRef
from distributed_comfy.state.jobs import FinishedItem
from distributed_comfy.state.records import ItemState
from distributed_comfy.tile_stage import TileGeometry, ValuePlace
from distributed_comfy.transport.blobs import BlobStore
from distributed_comfy.workflow.tile_items import Canvas, TileItem, TileRow, tile_specs
from tiler.errors import FrameOverLimit, TilerError
from tiler.groups import GroupLimits, frame_groups, group_steps
from tiler.options import SeamFix, TileOptions
from tiler.plan import PLAN_VERSION, TilePlan, TileStep, plan_tiles

log = logging.getLogger(__name__)

_SEAM_KINDS: dict[str, Any] = {"band_pass": "band"}
PREVIEW_INTERVAL_S = 1.0
_PIXEL_BYTES = COLOURS * 4
_OFFERED_BYTES = 4 * 2**20
"""Of crops that are stored before their items are unblocked in one call."""


@dataclass(frozen=True)
class TileLimits:
    """What bounds the work on tiles, and who is told of it."""

    blob_bytes: int = 2**33
    """Largest blob."""
    crop_bytes: int = 2**30
    """Crops that lie ready together, beyond one for each worker."""
    workers: Callable[[], int] = lambda: 1
    """How many workers can make tiles now; two crops lie ready for each."""
    on_planned: Callable[[Sequence[Sequence[int]]], None] = lambda tiles: None
    """Told the numbers of the tiles of each item, once they are known."""
    on_canvas: Callable[[NDArray[np.uint8]], None] | None = None
    """Given a small picture of the canvas, [h, w, 3], as it fills: at most one a second, and one of the end."""


@dataclass(frozen=True)
class Places:
    """Where a job's things lie."""

    table: JobTable
    """Gets the tiles."""
    store: BlobStore
    """Gets crops, and what all tiles share."""
    spool: Spool
    """Holds image and tiles; the canvas becomes a file in it."""


class TileWork:
    """One upscale of a job, from the image to the finished canvas.  One thread calls it, but for `ensure`.

    Args:
        job: its record; it has `JobRecord.tiles`.
        places: where everything lies.
        patience: waits out both servers.
        limits: bounds and callbacks.
    """

    def __init__(self, job: JobRecord, places: Places, patience: Patience, limits: TileLimits) -> None:
        assert job.tiles is not None
        self._job, self._stage, self._limits, self._ask = job, job.tiles, limits, patience
        self._table, self._spool = places.table, places.spool
        self._blobs = TileBlobs(job, places.store, places.spool, patience, limits.blob_bytes)
        self._ready: list[tuple[int, int]] = []
        """First step and number of each item whose crops may be cut; a heap."""
        self._division = Division((), ())
        self._plan: TilePlan | None = None
        self._filling: TileCanvas | None = None
        self._shown_at = float("-inf")

    @property
    def items(self) -> int:
        """Number of items that the tiles are; 0 before `begin`."""
        return self._division.items

    @property
    def done(self) -> bool:
        """Every tile is in the canvas."""
        return self._filling is not None and self._filling.done

    @property
    def canvas(self) -> NDArray[np.float32]:
        """[F, H, W, C], being filled; after `begin`."""
        return self._tiles.pixels

    @property
    def _tiles(self) -> TileCanvas:
        assert self._filling is not None, "begin() comes first"
        return self._filling

    def begin(self, states: Mapping[int, ItemState]) -> None:
        """Plan the tiles and enter them in the table; takes in those that an earlier collector spooled.

        Args:
            states: what the table says of the job's items.
        Raises:
            UpscaleImageUnusable: the image cannot be tiled.
            MessageVersionUnknown: the job comes from a version that plans otherwise.
            OutputUnwritable: the canvas does not fit on the disk.
        """
        if self._stage.plan_version != PLAN_VERSION:
            raise MessageVersionUnknown(kind=TilePlan.__name__, version=self._stage.plan_version, known=[PLAN_VERSION])
        parts = self._image()
        try:
            self._make_plan(parts)
        except TilerError as error:
            setting = "; the limit is DC_TILE_ITEM_BYTES" if isinstance(error, FrameOverLimit) else ""
            raise UpscaleImageUnusable(node_id=self._stage.node_id, reason=f"{error}{setting}") from error
        assert self._plan is not None
        self._filling = TileCanvas(self._job, self._spool, self._plan, self._division, parts)
        self._blobs.share([SharedValues(one.source_id, one.place.slot, self._values(one.place)) for one in self._stage.constants])
        spooled = self._enter()
        tiles = [self._numbers(number) for number in range(self.items)]
        log.info(
            "job %s: upscale %s: %d tiles in %d items, %d of these are here",
            self._job.job_id, self._stage.node_id, sum(map(len, tiles)), self.items, len(spooled),
        )  # fmt: skip
        self._limits.on_planned(tiles)
        for index in spooled:
            self.take(index)
        here = [index - self._job.first_tile for index in spooled]
        self._blobs.sweep({number: self._tiles.crop_shapes(number) for number in here})
        self._add_ready(self._tiles.released())
        # An earlier collector let these start: somebody may be waiting for the crops.
        waiting = sorted(entry for entry in self._ready if not self._tiles.has_arrived(entry[1]))
        started = [number for _, number in waiting if self._state(states, number) not in ("blocked", "done")]
        self._ready = [(step, number) for step, number in waiting if number not in set(started)]
        self._offer(started)

    def take(self, index: int) -> None:
        """Blend the tiles of a spooled item, as soon as their turn comes; a second time changes nothing.

        Raises:
            UpscaleImageUnusable: a tile has another size than its crop, or is not finite; or one is missing.
        """
        number = index - self._job.first_tile
        self._tiles.arrive(number)
        self._add_ready(self._tiles.released())
        self._blobs.remove(number)
        self._show()

    def go_on(self) -> None:
        """Cut crops ahead and let their items start."""
        self._offer(self._next_ready())

    def look(self, states: Mapping[int, ItemState]) -> None:
        """Tell the table again what it forgot: a state server that crashed may have lost the last second.

        Args:
            states: what the table says of the job's items now.
        """
        first = self._job.first_tile
        if any(index not in states for index in range(first, first + self.items)):
            self._enter()
        self._unblock(number for number in self._blobs.crops if self._state(states, number) == "blocked")

    def ensure(self) -> None:
        """Put back what the blob store lost of the crops and of what all tiles share; from any thread."""
        self._blobs.ensure()

    # -- image and plan
    def _image(self) -> list[ImagePart]:
        found = self._values(self._stage.image)
        parts = [ImagePart(one.index, one.value) for one in found if isinstance(one.value, TensorRef) and len(one.value.shape) == 4]
        if not parts or len(parts) != len(found):
            self._refuse("it got no image" if not found else "it got something else than images")
        _, height, width, channels = parts[0].ref.shape
        for part in parts:
            if tuple(part.ref.shape[1:]) != (height, width, channels):
                first = f"item {parts[0].index} of {[height, width, channels]}"
                self._refuse(f"item {part.index} has images of shape {list(part.ref.shape[1:])}, {first}")
        if not sum(part.ref.shape[0] for part in parts):
            self._refuse("it got a batch of no images")
        if channels not in (COLOURS, COLOURS + 1):
            self._refuse(f"its image has {channels} channel(s), not RGB or RGBA")
        return parts

    def _refuse(self, reason: str) -> NoReturn:
        raise UpscaleImageUnusable(node_id=self._stage.node_id, reason=reason)

    def _values(self, place: ValuePlace) -> list[PlacedValue]:
        """What lies there; where a collector repeats what is missing, so does the upscale."""
        repeats = any(one.node_id == place.node_id and one.on_missing == "repeat" for one in self._job.collectors)
        return placed_values(
            self._spool, place.node_id, place.slot, stand_ins(self._spool.items(), self._job.generated) if repeats else {}
        )

    def _make_plan(self, parts: Sequence[ImagePart]) -> None:
        _, height, width, _ = parts[0].ref.shape
        self._plan = plan_tiles((width, height), tile_options(self._stage.geometry))
        frame_bytes = max(step.size.width * step.size.height for step in self._plan.steps) * _PIXEL_BYTES
        groups = frame_groups(sum(part.ref.shape[0] for part in parts), frame_bytes, self._stage.item_bytes)
        most_pixels = min(self._stage.item_pixels, self._stage.item_bytes // _PIXEL_BYTES)
        frames = max(end - first for first, end in groups)
        limits = GroupLimits(most_pixels // frames, self._stage.item_tiles, self._stage.level_shares)
        self._division = Division(sorted(group_steps(self._plan, limits)), groups)  # where none is grouped, numbers are those of steps

    # -- items
    def _enter(self) -> list[int]:
        """Tell the table of all tiles; the indexes of those that are in the spool."""
        specs = list(self._specs())
        spooled = [spec.index for spec in specs if self._spool.has(spec.index)]
        finished = [FinishedItem(index, self._spool.claim_id(index) or "", self._spool.result(index)) for index in spooled]
        # False where the job has ended: the next look at the table says how.
        self._ask.call(self._extend, specs, finished)
        return spooled

    def _extend(self, specs: Sequence[ItemSpec], finished: Sequence[FinishedItem]) -> bool:
        return self._table.extend(self._job.job_id, specs, finished=finished, final=True)

    def _specs(self) -> Iterator[ItemSpec]:
        frames, height, width, _ = self.canvas.shape
        kept = {constant.source_id: self._blobs.kept_text(constant.source_id) for constant in self._stage.constants}
        return tile_specs(self._stage, self._job.first_tile, Canvas(width, height, frames), self._tile_items(), kept)

    def _tile_items(self) -> Iterator[TileItem]:
        assert self._plan is not None
        for number in range(self.items):
            place = self._division.place(number)
            first, end = self._division.groups[place.group]
            yield TileItem(number, tuple(_row(self._plan.steps[step]) for step in place.steps), first, end - first)

    def _numbers(self, number: int) -> tuple[int, ...]:
        """Of the tiles of an item: the steps of all groups of frames, one group after the other."""
        assert self._plan is not None
        place = self._division.place(number)
        return tuple(place.group * len(self._plan.steps) + step for step in place.steps)

    # -- crops
    def _add_ready(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            heapq.heappush(self._ready, (self._division.place(number).steps[0], number))

    def _has_room(self) -> bool:
        """Whether the crops of one more item may lie ready."""
        workers, crops = max(1, self._limits.workers()), len(self._blobs.crops)
        return crops < workers or (crops < 2 * workers and self._blobs.size_bytes < self._limits.crop_bytes)

    def _next_ready(self) -> Iterator[int]:
        """Items to cut the crops of, as long as there is room for those of one more."""
        while self._ready and self._has_room():
            _, number = heapq.heappop(self._ready)
            if not self._tiles.has_arrived(number):
                yield number

    def _offer(self, numbers: Iterable[int]) -> None:
        """Cut the crops of these items and let them start, some MiB at a time: the first must not wait until all are stored."""
        cut: list[int] = []
        before = self._blobs.size_bytes
        for number in numbers:
            cut.append(self._cut(number))
            if self._blobs.size_bytes - before >= _OFFERED_BYTES:
                self._unblock(cut)
                cut, before = [], self._blobs.size_bytes
        self._unblock(cut)

    def _cut(self, number: int) -> int:
        """Store the crops of an item; its number."""
        self._blobs.put(number, self._tiles.cut(number))
        self._add_ready(self._tiles.released())  # tiles that waited for these are blended, too
        return number

    def _unblock(self, numbers: Iterable[int]) -> None:
        ready = [(self._job.first_tile + number, self._blobs.feed(number)) for number in numbers]
        if ready:
            self._ask.call(self._table.unblock, self._job.job_id, ready)

    def _state(self, states: Mapping[int, ItemState], number: int) -> str:
        found = states.get(self._job.first_tile + number)
        return found.state if found is not None else "blocked"

    def _show(self) -> None:
        now = time.monotonic()
        if self._limits.on_canvas is not None and (self.done or now - self._shown_at >= PREVIEW_INTERVAL_S):
            self._shown_at = now
            self._limits.on_canvas(self._tiles.preview())


def _row(step: TileStep) -> TileRow:
    """A step in the words of `workflow.tile_items`."""
    read, size = step.read, step.size
    return TileRow(step.index, read.left, read.top, read.width, read.height, size.width, size.height, step.denoise)


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
