"""How much of a job is here, in what its user thinks of: items and tiles.  What else it has is a stage, which has a name and no number."""
from __future__ import annotations

from collections.abc import Mapping, Sequence

from distributed_comfy.messages import JobRecord

PREPARE, LAST = "the image to upscale", "last stage"


class JobCount:
    """Of one job; whoever shares it between threads has a lock.

    Args:
        record: of the job; None while there is none.
    """

    def __init__(self, record: JobRecord | None = None) -> None:
        # The one item before the tiles makes nothing but what they are cut from.
        only = record is not None and record.tiles is not None and record.generated == 1 and not record.collectors
        self.items_total = record.generated if record and not only else 0
        self.items_done = 0
        self.tiles_total = 0
        """0 before they are planned."""
        self.tiles_done = 0
        self.tiles: Mapping[int, Sequence[int]] = {}
        """Index of each item of tiles -> the numbers of its tiles, once they are planned."""
        self.here: set[int] = set()
        """Indexes of items, tiles and stages among them."""
        self._upscales = record is not None and record.tiles is not None
        self._first_tile = record.first_tile if record else 0
        places = ((0 if only else record.prepare_index, PREPARE), (record.last_index, LAST)) if record else ()
        self.stages: Mapping[int, str] = {index: name for index, name in places if index is not None}
        """Index -> what it is."""

    @property
    def done(self) -> int:
        """Items and tiles that are here."""
        return self.items_done + self.tiles_done

    @property
    def total(self) -> int:
        """Items and tiles; 0 where neither is known."""
        return self.items_total + self.tiles_total

    @property
    def complete(self) -> bool:
        """All of it is here, the stages too."""
        return self.done >= self.total and self.here >= self.stages.keys() and (bool(self.tiles) or not self._upscales)

    def is_tile(self, index: int) -> bool:
        """Whether an item makes tiles."""
        return self._upscales and index >= self._first_tile

    def take(self, index: int) -> None:
        """An item is here; a second time changes nothing."""
        if index not in self.here:
            self.here.add(index)
            self._count(index)

    def plan(self, tiles: Sequence[Sequence[int]]) -> None:
        """The tiles of each item are known; items of an earlier run may be here before."""
        self.tiles_total = sum(map(len, tiles))
        self.tiles = {self._first_tile + number: numbers for number, numbers in enumerate(tiles)}
        for index in self.here & self.tiles.keys():
            self._count(index)

    def _count(self, index: int) -> None:
        if self.is_tile(index):
            self.tiles_done += len(self.tiles.get(index, ()))
        elif index not in self.stages:
            self.items_done += 1

    def words(self) -> str:
        """``8 of 8 items, 3 of 9 tiles``; a stage that comes next is named; empty where nothing is known."""
        items = [f"{self.items_done} of {self.items_total} items"] if self.items_total else []
        tiles = [f"{self.tiles_done} of {self.tiles_total} tiles"] if self.tiles else []
        return ", ".join([*items, *tiles, *self._next_stage()])

    def _next_stage(self) -> list[str]:
        """What waits for all that is counted before it."""
        if self.done < self.total:
            return []
        coming = [name for index, name in sorted(self.stages.items()) if index not in self.here]
        if self._upscales and not self.tiles and coming[:1] != [PREPARE]:
            return ["cutting tiles"]
        return coming[:1]

    def number(self, index: int) -> str:
        """``3/9``: how many of its kind are here; empty for a stage."""
        if self.is_tile(index):
            return f"{self.tiles_done}/{self.tiles_total}"
        return "" if index in self.stages else f"{self.items_done}/{self.items_total}"
