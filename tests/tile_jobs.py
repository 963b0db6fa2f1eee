"""A job with an upscale on stage: a real spool, tables and blobs in memory, and workers that the test plays."""
from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from distributed_comfy import messages
from distributed_comfy.collector import tile_work
from distributed_comfy.collector.memory_table import MemoryJobTable
from distributed_comfy.collector.patience import Patience
from distributed_comfy.collector.spool import Spool
from distributed_comfy.collector.tile_work import Places, TileLimits, TileWork, tile_options
from distributed_comfy.messages import CollectorPlan, ItemResult, JobRecord
from distributed_comfy.tile_stage import TileConstant, TileGeometry, TileStage, ValuePlace
from distributed_comfy.transport.feed_names import Feed
from distributed_comfy.transport.memory_blobs import MemoryBlobStore
from distributed_comfy.transport.values import load_value
from tests.collected_jobs import COLLECTOR, JOB_ID, capture, open_spool
from tiler.blender import Blender
from tiler.groups import GroupLimits
from tiler.plan import plan_tiles

UPSCALE, PIXELS, IMAGE_EDGE, HINT = "up", "up~pixels", "3~0", "4~0"
GEOMETRY = TileGeometry(64, 64, 16, 8, True, "linear", "none", 1.0, 64, 8, 16, "same", 0.4)


def tile_job(
    *, items: int = 0, on_missing: Any = "error", hint: bool = False, item_bytes: int = 2**28, item_pixels: int = 2**16, **geometry: Any
) -> JobRecord:
    """A job of one item that makes the image, or of ``items`` that a collector brings together; then tiles, then a last stage."""
    image = ValuePlace("every", COLLECTOR, "images") if items else ValuePlace("first", IMAGE_EDGE, "value")
    constants = (TileConstant(HINT, ValuePlace("first", HINT, "value")),) if hint else ()
    tiles = TileStage(
        UPSCALE, image, "tile", (UPSCALE,), PIXELS, "up~regions", "7", replace(GEOMETRY, **geometry), constants,
        item_bytes=item_bytes, item_pixels=item_pixels,
    )  # fmt: skip
    collectors = (CollectorPlan(COLLECTOR, ("images",), consumed=False, on_missing=on_missing),) if items else ()
    return JobRecord(
        JOB_ID, "someone", 5, (items or 1) + 1, ("p",), "p", collectors=collectors, has_last_stage=True, grows=True, tiles=tiles
    )  # fmt: skip


def put_together(patch: pytest.MonkeyPatch) -> None:
    """A level may be one item, so that few tiles go together, too."""
    patch.setattr(tile_work, "GroupLimits", lambda pixels, steps, shares: GroupLimits(pixels, steps, shares=1))


def put_apart(patch: pytest.MonkeyPatch) -> None:
    """Each tile is an item."""
    patch.setattr(tile_work, "GroupLimits", lambda pixels, steps, shares: GroupLimits(0))


def picture(frames: int = 1, height: int = 96, width: int = 150, channels: int = 3, seed: int = 1) -> NDArray[np.float32]:
    """Noise, a little outside [0, 1]."""
    return np.random.default_rng(seed).uniform(-0.1, 1.1, (frames, height, width, channels)).astype(np.float32)


def refined(crop: NDArray[np.float32]) -> NDArray[np.float32]:
    """What the workers make of a crop: something that depends on all it shows, so that a wrong order shows."""
    mixed = (crop + np.roll(crop, 11, axis=1) + np.roll(crop, 17, axis=2)) / np.float32(3)
    return (1 - mixed * np.float32(0.9)).astype(np.float32)


def expected(job: JobRecord, image: NDArray[np.float32]) -> NDArray[np.float32]:
    """The canvas that one tile after the other, in the plan's order, gives."""
    assert job.tiles is not None
    plan = plan_tiles((image.shape[2], image.shape[1]), tile_options(job.tiles.geometry))
    blender = Blender(plan, np.ascontiguousarray(image[..., :3]))
    for step in plan.steps:
        blender.put(step.index, refined(blender.cut(step.index)))
        blender.advance()
    while blender.schedule.missing():
        blender.advance()
    whole = image.copy()
    whole[..., :3] = blender.finish()
    return whole


@dataclass
class Studio:
    """One job; `restart` is the death of its collector."""

    job: JobRecord
    folder: Path
    workers: int = 2
    store: MemoryBlobStore = field(default_factory=MemoryBlobStore)
    previews: list[NDArray[np.uint8]] = field(default_factory=list)
    planned: list[Sequence[int]] = field(default_factory=list)
    """The numbers of the tiles of each item."""

    def __post_init__(self) -> None:
        self.table = MemoryJobTable(self.job.items, has_last_stage=True, grows=True, spare=bool(self.job.spare))
        self.spool: Spool = open_spool(self.folder)
        self.patience = Patience("test", threading.Event())
        self.claims = 0
        self.work = self._new_work()

    def _new_work(self) -> TileWork:
        def note(tiles: Sequence[Sequence[int]]) -> None:
            self.planned = list(tiles)

        limits = TileLimits(workers=lambda: self.workers, on_planned=note, on_canvas=self.previews.append)
        return TileWork(self.job, Places(self.table, self.store, self.spool), self.patience, limits)

    def give_image(self, image: NDArray[np.float32], *, hint: Any = None) -> None:
        """Item 0 is done and in the spool."""
        captures = [capture(self.store, "c0", IMAGE_EDGE, "value", image)]
        captures += [capture(self.store, "c0", HINT, "value", hint)] if hint is not None else []
        self.give(0, ItemResult(captures=tuple(captures), worker="w0"))

    def give(self, index: int, result: ItemResult) -> None:
        """An item is done and in the spool."""
        assert self.table.claim(index, f"c{index}") and self.table.complete(index, f"c{index}", result)
        self.spool.add(index, f"c{index}", result, self.store)

    def begin(self) -> None:
        """The collector has the image."""
        self.work.begin(self.table.item_states(JOB_ID))
        self.work.go_on()

    def restart(self) -> None:
        """Another collector with the same spool, table and blobs."""
        self.spool.close()
        self.spool = open_spool(self.folder)
        self.work = self._new_work()
        self.begin()

    @property
    def tiles(self) -> range:
        """Indexes of the items of tiles."""
        return range(self.job.first_tile, self.job.first_tile + self.work.items)

    def pending(self) -> list[int]:
        """Items of tiles that a worker may take."""
        return [index for index, item in self.table.item_states(JOB_ID).items() if item.state == "pending" and index in self.tiles]

    def feed(self, index: int) -> dict[str, list[Any]]:
        """What the worker of an item reads: source -> values."""
        feed = messages.load(Feed, self.table.feeds[index])
        return {
            node: [load_value(self.store, value, as_torch=False) for values in slots.values() for value in values]
            for node, slots in feed.items()
        }

    def draw(self, index: int, change: Any = refined) -> str:
        """A worker makes the tiles of an item; its claim."""
        self.claims += 1
        claim_id = f"t{self.claims}"
        assert self.table.claim(index, claim_id, "w1")
        drawn = [change(crop) for crop in self.feed(index)[PIXELS]]
        captures = [capture(self.store, claim_id, UPSCALE, "images", tile, list_index=at) for at, tile in enumerate(drawn)]
        result = ItemResult(captures=tuple(captures), worker="w1")
        assert self.table.complete(index, claim_id, result)
        return claim_id

    def fetch(self, index: int) -> None:
        """The item comes into the spool."""
        found = self.table.result(JOB_ID, index)
        assert found is not None
        self.spool.add(index, *found, self.store)

    def finish(self) -> NDArray[np.float32]:
        """Draw all that is left; the canvas."""
        while not self.work.done:
            index = self.pending()[0]
            self.draw(index)
            self.fetch(index)
            self.work.take(index)
            self.work.go_on()
        return np.array(self.work.canvas)
