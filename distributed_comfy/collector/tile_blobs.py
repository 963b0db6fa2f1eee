"""What the tiles of an upscale read from the blob store: each its crop, and all of them what they share.

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
from distributed_comfy.transport.values import expected_ref, store_value, value_blobs
from distributed_comfy.workflow.classes import EDGE_SLOT

_SWEPT_TOGETHER = 500


@dataclass(frozen=True)
class _Crop:
    pixels: NDArray[np.float32]
    ref: Value


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
        self._crops: dict[int, _Crop] = {}
        self._shared: Sequence[SharedValues] = ()
        self._constants: Feed = {}
        self._changing = threading.Lock()
        """Held while one crop is put back or taken away, so that none comes back after it was taken away."""

    # -- crops
    @property
    def crops(self) -> list[int]:
        """Numbers of the tiles whose crops are kept."""
        return list(self._crops)

    @property
    def size_bytes(self) -> int:
        """Of all crops."""
        return sum(crop.pixels.nbytes for crop in self._crops.values())

    def put(self, number: int, pixels: NDArray[np.float32]) -> None:
        """Keep and store a crop."""
        self._crops[number] = _Crop(pixels, self._store_crop(number, pixels))

    def remove(self, number: int) -> None:
        """The tile of this crop is here."""
        with self._changing:
            crop = self._crops.pop(number, None)
            if crop is not None:
                self._ask.call(self._store.unlink, value_blobs(crop.ref))

    def sweep(self, crops: Mapping[int, tuple[int, ...]]) -> None:
        """Unlink what an earlier collector may have left of crops whose tiles are here; number -> shape."""
        shapes = list(crops.items())
        for start in range(0, len(shapes), _SWEPT_TOGETHER):
            part = shapes[start : start + _SWEPT_TOGETHER]
            refs = [expected_ref(self._store, self._crop_name(number), dtype="float32", shape=shape) for number, shape in part]
            self._ask.call(self._store.unlink, [ref.blob for ref in refs])

    def feed(self, number: int) -> str:
        """What this tile is fed, as `JobTable.unblock` keeps it."""
        return messages.dump({self._pixels_id: {EDGE_SLOT: (self._crops[number].ref,)}, **self._constants})

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
                crop = self._crops.get(number)
                if crop is not None and not self._is_there(crop.ref):
                    self._store_crop(number, crop.pixels)
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

    def _store_crop(self, number: int, pixels: NDArray[np.float32]) -> Value:
        return self._ask.call(self._store_value, self._crop_name(number), pixels)

    def _crop_name(self, number: int) -> str:
        return f"{self._job_id}:crop:{number}"

    def _store_value(self, name: str, value: Any) -> Value:
        return store_value(self._store, name, value, job_id=self._job_id, limit_bytes=self._limit_bytes)
