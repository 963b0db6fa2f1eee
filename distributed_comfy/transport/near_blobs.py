"""The blob store of a process of the cluster: results go through this host's memory where their collector is here too, else to the Redis.

A result that lies in shared memory has an id of another form, ``<name>#@<key of its job>``, so every reader knows where to look; on
another host it is missing, as a blob that a restarted server lost, and its item runs again.  That comes up only where a job changes its
host after its collector has died.  Everything else goes to the Redis: inputs, feeds, files, and the results of jobs that nobody on this
host collects.  The table counts the bytes in flight by the results' records, so they are the same for both ways.
"""
from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext

from distributed_comfy.errors import BlobMissing
from distributed_comfy.transport.blobs import BlobStore
from distributed_comfy.transport.frames import BytesLike
from distributed_comfy.transport.shared_memory import SharedMemory, is_job_key, job_key

_MARK = "#@"
_PIECE_BYTES = 4 * 2**20


class NearBlobStore:
    """A `BlobStore` over another one.

    Args:
        far: where everything lies that does not go through memory.
        memory: of this host; None where it has none.
        results_near: what is put are results: a worker's engine; a collector puts what workers of any host may read.
    """

    def __init__(self, far: BlobStore, memory: SharedMemory | None, *, results_near: bool = False) -> None:
        self._far = far
        self._memory = memory
        self._results_near = results_near

    def blob_id(self, name: str, size_bytes: int) -> str:
        """See `BlobStore.blob_id`; of the other store, for no record names a result before it exists."""
        return self._far.blob_id(name, size_bytes)

    def put(
        self, name: str, pieces: Iterable[BytesLike], *, size_bytes: int | None = None, job_id: str = "", ttl_s: int | None = None
    ) -> str:
        """See `BlobStore.put`."""
        if self._memory is not None and self._results_near and job_id and size_bytes is None:
            pieces = list(pieces)
            if self._memory.put(job_key(job_id), name, pieces):
                return f"{name}{_MARK}{job_key(job_id)}"
        return self._far.put(name, pieces, size_bytes=size_bytes, job_id=job_id, ttl_s=ttl_s)

    def get(self, blob: str) -> memoryview:
        """See `BlobStore.get`."""
        near = near_name(blob)
        return self._far.get(blob) if near is None else self._mapped(blob, *near)

    def chunks(self, blob: str) -> Iterator[BytesLike]:
        """See `BlobStore.chunks`."""
        near = near_name(blob)
        if near is None:
            yield from self._far.chunks(blob)
            return
        content = self._mapped(blob, *near)
        for start in range(0, max(1, len(content)), _PIECE_BYTES):
            yield content[start : start + _PIECE_BYTES]

    def exists(self, blobs: Sequence[str]) -> list[bool]:
        """See `BlobStore.exists`."""
        far = [blob for blob in blobs if near_name(blob) is None]
        there = dict(zip(far, self._far.exists(far), strict=True))
        for blob in blobs:
            near = near_name(blob)
            if near is not None:
                there[blob] = self._memory is not None and self._memory.exists(*near)
        return [there[blob] for blob in blobs]

    def unlink(self, blobs: Iterable[str]) -> None:
        """See `BlobStore.unlink`."""
        far = []
        for blob in blobs:
            near = near_name(blob)
            if near is None:
                far.append(blob)
            elif self._memory is not None:
                self._memory.unlink(*near)
        if far:
            self._far.unlink(far)

    def drop_job(self, job_id: str) -> None:
        """See `BlobStore.drop_job`."""
        if self._memory is not None:
            self._memory.drop_job(job_id)
        self._far.drop_job(job_id)

    def memory_limit(self) -> int | None:
        """See `BlobStore.memory_limit`; what may be in flight is the same for both ways."""
        return self._far.memory_limit()

    def capacity(self) -> int | None:
        """See `BlobStore.capacity`; of the other store, for this way may be closed at any time."""
        return self._far.capacity()

    def offered(self, job_id: str) -> AbstractContextManager[object]:
        """See `BlobStore.offered`."""
        return nullcontext() if self._memory is None else self._memory.offered(job_id)

    def _mapped(self, blob: str, key: str, name: str) -> memoryview:
        content = self._memory.get(key, name) if self._memory is not None else None
        if content is None:
            raise BlobMissing(blob=blob)
        return content


def near_name(blob: str) -> tuple[str, str] | None:
    """(key of the job, name) of a blob in shared memory; None for one of the other store."""
    name, mark, key = blob.rpartition(_MARK)
    return (key, name) if mark and name and is_job_key(key) else None


def sweep_regularly(memory: SharedMemory, interval_s: float) -> None:
    """A thread that removes what collectors left which were killed, for as long as this process lives."""
    ended = threading.Event()

    def sweep() -> None:
        while not ended.wait(interval_s):
            memory.sweep()

    memory.sweep()
    threading.Thread(target=sweep, name="shared memory", daemon=True).start()
