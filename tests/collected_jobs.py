"""Jobs, results and workers that the collector's tests share: real frames in a `MemoryBlobStore`, a real spool, `MemoryJobTable`."""
from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distributed_comfy.collector.spool import Spool, SpoolManifest
from distributed_comfy.errors import BlobMissing
from distributed_comfy.messages import Capture, CollectorPlan, FileRef, ItemResult, JobRecord, Value
from distributed_comfy.transport.blobs import BlobStore
from distributed_comfy.transport.feed_names import Feed, feed_lanes
from distributed_comfy.transport.values import load_value, store_value, value_blobs

JOB_ID = "0123456789ab"
COLLECTOR = "9"
EDGE = "5~1"


def job_record(items: int, *, last_stage: bool = False, slots: tuple[str, ...] = ("images",), edges: tuple[str, ...] = ()) -> JobRecord:
    """A job of ``items`` generated items, and a last stage beside them."""
    collectors = (CollectorPlan(COLLECTOR, slots, consumed=last_stage, unsaved=() if last_stage else slots),)
    return JobRecord(
        JOB_ID, "someone", 5, items + last_stage, ("p",), "p", collectors=collectors, edges=edges, has_last_stage=last_stage
    )


def open_spool(folder: Path) -> Spool:
    """The job's spool."""
    return Spool(folder, SpoolManifest(JOB_ID, "key"))


def image(seed: int, shape: tuple[int, ...] = (1, 8, 6, 3)) -> NDArray[np.float32]:
    """Images that differ by seed, a little outside [0, 1]."""
    return np.random.default_rng(seed).uniform(-0.1, 1.1, shape).astype(np.float32)


def audio(seed: int, samples: int = 10) -> dict[str, Any]:
    """Stereo noise."""
    return {"waveform": np.random.default_rng(seed).uniform(-1, 1, (1, 2, samples)).astype(np.float32), "sample_rate": 44_100}


def capture(store: BlobStore, claim_id: str, node_id: str, slot: str, value: Any, *, list_index: int = 0) -> Capture:
    """A captured value whose tensors lie in the store."""
    name = f"{JOB_ID}:{claim_id}:{node_id}.{slot}.{list_index}"
    return Capture(node_id, slot, list_index, store_value(store, name, value, job_id=JOB_ID, limit_bytes=2**30))


def image_result(store: BlobStore, claim_id: str, *batches: NDArray[Any], files: tuple[FileRef, ...] = ()) -> ItemResult:
    """What an item gives whose collector got these batches as a list."""
    captures = [capture(store, claim_id, COLLECTOR, "images", batch, list_index=position) for position, batch in enumerate(batches)]
    return ItemResult(captures=tuple(captures), files=files, worker="pc1-cpu", seconds=0.5)


def file_ref(store: BlobStore, name: str, content: bytes, *, blob_name: str = "", folder: Any = "output") -> FileRef:
    """A file of an output node, in the store under whatever name."""
    blob = store.put(blob_name or f"{JOB_ID}:file:{name}", [content], job_id=JOB_ID)
    return FileRef(name, "image/png", hashlib.sha256(content).hexdigest(), len(content), blob, folder, node_id="7")


def fill(spool: Spool, store: BlobStore, items: int) -> None:
    """Put ``items`` items of one image each into the spool."""
    for index in range(items):
        spool.add(index, f"c{index}", image_result(store, f"c{index}", image(index)), store)


class FeedReader(threading.Thread):
    """Reads a bound feed as an engine does: slot by slot in the order given, each value waited for, loaded and unlinked."""

    def __init__(self, store: BlobStore, feed: Feed, slots: list[tuple[str, str]] | None = None, *, give_up_s: float = 20.0) -> None:
        super().__init__(daemon=True)
        self._store = store
        self._feed = feed
        self._slots = slots or [(node, slot) for node, of_node in feed.items() for slot in of_node]
        self._give_up_s = give_up_s
        self.read: dict[tuple[str, str], list[Any]] = {}
        self.failure: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            for node, slot in self._slots:
                self.read[node, slot] = [self._take(value) for value in self._feed[node][slot]]
        except BlobMissing as error:
            self.failure = error

    def finish(self) -> dict[tuple[str, str], list[Any]]:
        """What was read, once all was."""
        self.join(timeout=30)
        assert not self.is_alive()
        if self.failure is not None:
            raise self.failure
        return self.read

    def _take(self, value: Value) -> Any:
        blobs = value_blobs(value)
        deadline = time.monotonic() + self._give_up_s
        while blobs and not all(self._store.exists(blobs)):
            if time.monotonic() > deadline:
                raise BlobMissing(blob=blobs[0])
            time.sleep(0.002)
        loaded = load_value(self._store, value, as_torch=False)
        self._store.unlink(blobs)
        return loaded


def all_blobs(feed: Feed) -> Iterator[str]:
    """Every blob id of a feed."""
    for lane in feed_lanes(feed):
        for refs in lane:
            yield from (ref.blob for ref in refs)
