"""The blob store of a job without a cluster, and of unit tests: the same promises as the Redis one, in a dict of this process."""
from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext

from distributed_comfy.errors import BlobMissing, BlobStoreFull
from distributed_comfy.transport.blobs import cut_chunks, make_blob_id
from distributed_comfy.transport.frames import BytesLike


class MemoryBlobStore:
    """A `BlobStore` without a server; ``clock`` gives seconds, so that a test can let time pass."""

    def __init__(
        self,
        *,
        chunk_bytes: int = 4 * 2**20,
        ttl_s: int = 86_400,
        memory_limit_bytes: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._chunk_bytes = chunk_bytes
        self._ttl_s = ttl_s
        self._memory_limit_bytes = memory_limit_bytes
        self._clock = clock
        self._lock = threading.Lock()
        self._blobs: dict[str, tuple[bytes, float]] = {}
        self._jobs: dict[str, set[str]] = {}

    def blob_id(self, name: str, size_bytes: int) -> str:
        """See `BlobStore.blob_id`."""
        return make_blob_id(name, size_bytes, self._chunk_bytes)

    def put(
        self, name: str, pieces: Iterable[BytesLike], *, size_bytes: int | None = None, job_id: str = "", ttl_s: int | None = None
    ) -> str:
        """See `BlobStore.put`."""
        content = b"".join(pieces)
        if size_bytes is not None and size_bytes != len(content):
            raise ValueError(f"blob {name} has {len(content)} bytes, not {size_bytes}")
        blob = self.blob_id(name, len(content))
        with self._lock:
            self._expire()
            self._check_room(len(content))
            self._blobs[blob] = (content, self._clock() + (ttl_s or self._ttl_s))
            if job_id:
                self._jobs.setdefault(job_id, set()).add(blob)
        return blob

    def get(self, blob: str) -> memoryview:
        """See `BlobStore.get`."""
        return memoryview(bytearray(self._content(blob)))

    def chunks(self, blob: str) -> Iterator[BytesLike]:
        """See `BlobStore.chunks`."""
        for chunk in cut_chunks([self._content(blob)], self._chunk_bytes):
            yield b"".join(chunk)

    def exists(self, blobs: Sequence[str]) -> list[bool]:
        """See `BlobStore.exists`."""
        with self._lock:
            self._expire()
            return [blob in self._blobs for blob in blobs]

    def unlink(self, blobs: Iterable[str]) -> None:
        """See `BlobStore.unlink`."""
        with self._lock:
            for blob in blobs:
                self._blobs.pop(blob, None)

    def drop_job(self, job_id: str) -> None:
        """See `BlobStore.drop_job`."""
        with self._lock:
            blobs = self._jobs.pop(job_id, set())
        self.unlink(blobs)

    def memory_limit(self) -> int | None:
        """See `BlobStore.memory_limit`."""
        return self._memory_limit_bytes

    def capacity(self) -> int | None:
        """See `BlobStore.capacity`."""
        return self._memory_limit_bytes

    def offered(self, job_id: str) -> AbstractContextManager[object]:
        """See `BlobStore.offered`; there is no shorter way."""
        return nullcontext()

    def _content(self, blob: str) -> bytes:
        with self._lock:
            self._expire()
            if blob not in self._blobs:
                raise BlobMissing(blob=blob)
            return self._blobs[blob][0]

    def _check_room(self, size_bytes: int) -> None:
        used_bytes = sum(len(content) for content, _ in self._blobs.values())
        if self._memory_limit_bytes is not None and used_bytes + size_bytes > self._memory_limit_bytes:
            raise BlobStoreFull(target="memory", reason=f"{used_bytes} of {self._memory_limit_bytes} bytes used")

    def _expire(self) -> None:
        now = self._clock()
        self._blobs = {blob: kept for blob, kept in self._blobs.items() if kept[1] > now}
