"""What the tiles of an upscale read from the blob store: each item its crops, and all of them what they share.

Everything is kept here until nobody can need it any more, so that it can be put back when the blob store loses it.
"""
from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distributed_comfy import messages
from distributed_comfy.collector.assemble import PlacedValue
from distributed_comfy.collector.patience import Patience
from distributed_comfy.collector.spool import Spool
from distributed_comfy.messages import JobRecord, MappingValue, TensorRef, Value
from distributed_comfy.transport.blobs import BlobStore
from distributed_comfy.transport.feed_names import Feed
from distributed_comfy.transport.travel import step_encoding
from distributed_comfy.transport.values import expected_ref, store_value, value_blobs
from distributed_comfy.workflow.classes import EDGE_SLOT

_SWEPT_TOGETHER = 500


@dataclass(frozen=True)
class _Crops:
    """Of one item, in the order of its tiles."""

    pixels: Sequence[NDArray[np.float32]]
    refs: tuple[Value, ...]


@dataclass(frozen=True)
class SharedValues:
    """What all tiles take from one place."""

    source_id: str
    """The source node in the tile's prompt."""
    slot: str
    values: Sequence[PlacedValue]


class TileBlobs:
    """Crops and shared values of one job; `ensure` may be called from another thread than the rest.

    Args:
        job: with `JobRecord.tiles`.
        store: where they go.
        spool: where shared values lie.
        patience: waits out the store.
        limit_bytes: largest blob.
    """

    def __init__(self, job: JobRecord, store: BlobStore, spool: Spool, patience: Patience, limit_bytes: int) -> None:
        assert job.tiles is not None
        self._job_id, self._pixels_id = job.job_id, job.tiles.pixels
        self._store, self._spool, self._ask, self._limit_bytes = store, spool, patience, limit_bytes
        self._encoding = step_encoding(job.frames)
        self._crops: dict[int, _Crops] = {}
        self._shared: Sequence[SharedValues] = ()
        self._constants: Feed = {}
        self._changing = threading.Lock()
        """Held while the crops of an item are put back or taken away, so that none comes back after it was taken away."""

    # -- crops
    @property
    def crops(self) -> list[int]:
        """Numbers of the items whose crops are kept."""
        return list(self._crops)

    @property
    def size_bytes(self) -> int:
        """Of all crops."""
        return sum(pixels.nbytes for crops in self._crops.values() for pixels in crops.pixels)

    def put(self, number: int, crops: Sequence[NDArray[np.float32]]) -> None:
        """Keep and store the crops of an item."""
        self._crops[number] = _Crops(crops, tuple(self._store_crop(number, at, pixels) for at, pixels in enumerate(crops)))

    def remove(self, number: int) -> None:
        """The tiles of this item are here."""
        with self._changing:
            crops = self._crops.pop(number, None)
            if crops is not None:
                self._ask.call(self._store.unlink, [blob for ref in crops.refs for blob in value_blobs(ref)])

    def sweep(self, crops: Mapping[int, Sequence[tuple[int, ...]]]) -> None:
        """Unlink what an earlier collector may have left of crops whose tiles are here; number -> shapes.

        An encoded crop has the same chunks or fewer.
        """
        named = [(self._crop_name(number, at), shape) for number, shapes in crops.items() for at, shape in enumerate(shapes)]
        for start in range(0, len(named), _SWEPT_TOGETHER):
            part = named[start : start + _SWEPT_TOGETHER]
            refs = [expected_ref(self._store, name, dtype="float32", shape=shape) for name, shape in part]
            self._ask.call(self._store.unlink, [ref.blob for ref in refs])

    def feed(self, number: int) -> str:
        """What this item is fed, as `JobTable.unblock` keeps it."""
        return messages.dump({self._pixels_id: {EDGE_SLOT: self._crops[number].refs}, **self._constants})

    # -- what all tiles share
    def share(self, shared: Sequence[SharedValues]) -> None:
        """Store what every tile takes, once; it stays as long as the job."""
        self._shared = shared
        feed: Feed = {}
        for name, entry in self._named():
            slots = feed.setdefault(entry.source_id, {})
            slots[entry.slot] = tuple(self._store_placed(f"{name}.{at}", placed) for at, placed in enumerate(entry.values))
        self._constants = feed

    def kept_text(self, source_id: str) -> str:
        """A text for this source that is another for other values."""
        slots = self._constants[source_id]
        return messages.content_hash({slot: [messages.to_plain(value) for value in values] for slot, values in slots.items()})

    # -- losses
    def ensure(self) -> None:
        """Put back what the store lost; from any thread."""
        for number in self.crops:
            with self._changing:
                if crops := self._crops.get(number):
                    for at, (pixels, ref) in enumerate(zip(crops.pixels, crops.refs, strict=True)):
                        if not self._is_there(ref):
                            self._store_crop(number, at, pixels)
        for name, entry in self._named():
            stored = self._constants.get(entry.source_id, {}).get(entry.slot, ())
            for at, (placed, value) in enumerate(zip(entry.values, stored, strict=False)):
                if not self._is_there(value):
                    self._store_placed(f"{name}.{at}", placed)

    def _is_there(self, value: Value) -> bool:
        blobs = value_blobs(value)
        return not blobs or all(self._ask.call(self._store.exists, blobs))

    def _named(self) -> Iterator[tuple[str, SharedValues]]:
        return ((f"{self._job_id}:shared:{number}", entry) for number, entry in enumerate(self._shared))

    def _store_placed(self, name: str, placed: PlacedValue) -> Value:
        return self._copied(name, placed.index, placed.value)

    def _copied(self, name: str, index: int, value: Value) -> Value:
        """A value of the spool in the store, its frames byte for byte as they came."""
        if isinstance(value, MappingValue):
            return MappingValue({key: self._copied(f"{name}.{key}", index, entry) for key, entry in value.entries.items()})
        if not isinstance(value, TensorRef):
            return value
        return replace(value, blob=self._ask.call(self._put_frame, name, self._spool.frame(index, value)))

    def _put_frame(self, name: str, frame: memoryview) -> str:
        return self._store.put(name, [frame], job_id=self._job_id)

    def _store_crop(self, number: int, at: int, pixels: NDArray[np.float32]) -> Value:
        return self._ask.call(self._store_value, self._crop_name(number, at), pixels)

    def _crop_name(self, number: int, at: int) -> str:
        return f"{self._job_id}:crop:{number}.{at}"

    def _store_value(self, name: str, value: Any) -> Value:
        return store_value(self._store, name, value, job_id=self._job_id, limit_bytes=self._limit_bytes, encoding=self._encoding)
