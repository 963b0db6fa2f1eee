"""Blobs: named byte strings that lie in the blob Redis from the moment they are written until their reader unlinks them.

A blob is stored in chunks, each under a key of its own, so that no client of the Redis waits long for another; a blob's id is its name
and its number of chunks, ``<name>#<chunks>``.  Every chunk is a SET with an expiry and therefore idempotent: a command that is sent
twice has the effect of one.  A blob that was put for a job is also entered in that job's set, so that `BlobStore.drop_job` finds it
when nobody refers to it any more.  Implementations: `RedisBlobStore` (redis_blobs.py), `NearBlobStore` (near_blobs.py), which every
process of a cluster has over it, and `MemoryBlobStore` (memory_blobs.py), which unit tests use; one contract suite holds for all.

Keys, all of the blob side::

    <prefix>blob:<name>:<n>     STRING  chunk n of a blob, from 0
    <prefix>blobs:<job id>      SET     ids of the blobs that were put for a job
"""
from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from distributed_comfy.errors import BlobMissing
from distributed_comfy.transport.frames import BytesLike

_BLOB_ID = re.compile(r"(.+)#([1-9]\d{0,6})", re.DOTALL)


class BlobReader(Protocol):
    """Where blobs can be read: a store, or a place where a collector keeps what it fetched."""

    def get(self, blob: str) -> memoryview:
        """The whole blob in one new, writable buffer.

        Raises:
            BlobMissing: the blob, or a chunk of it, is not there.
        """


class BlobStore(BlobReader, Protocol):
    """Where tensors and files lie between their writer and their reader; safe to use from several threads.

    All methods raise `ConnectionLost` when the store cannot be reached.
    """

    def blob_id(self, name: str, size_bytes: int) -> str:
        """The id that `put` will give, so that a record can name a blob before it exists."""

    def put(
        self, name: str, pieces: Iterable[BytesLike], *, size_bytes: int | None = None, job_id: str = "", ttl_s: int | None = None
    ) -> str:
        """Store the joined pieces; the same name and bytes again change nothing.

        Args:
            name: any text but the empty one.
            pieces: byte strings in order; not copied more than sending them needs.
            size_bytes: their total length, where ``pieces`` is a stream.
            job_id: the job whose `drop_job` removes the blob; none by default.
            ttl_s: the blob vanishes after this long; the store's own time by default.
        Returns:
            The blob id.
        Raises:
            BlobStoreFull: the store is at its memory limit; nothing of the blob is left in it.
            ValueError: ``pieces`` are not ``size_bytes`` long.
        """

    def chunks(self, blob: str) -> Iterator[BytesLike]:
        """The blob piece by piece, for what should not lie in memory as a whole; errors as `get`, possibly after some pieces."""

    def exists(self, blobs: Sequence[str]) -> list[bool]:
        """For each id, whether all of the blob is there."""

    def unlink(self, blobs: Iterable[str]) -> None:
        """Remove blobs; those that are gone already are no error."""

    def drop_job(self, job_id: str) -> None:
        """Remove every blob that was put for this job and is still there."""

    def memory_limit(self) -> int | None:
        """Bytes the store may hold (``maxmemory``), or None where it has no limit."""

    def capacity(self) -> int | None:
        """Bytes of blobs that the store takes at most while nothing else lies there; None where it has no limit."""

    def offered(self, job_id: str) -> AbstractContextManager[object]:
        """A context in which this process collects the job: writers near to it may take a shorter way, where there is one."""


@dataclass(frozen=True)
class BlobKeys:
    """The names of all Redis keys of the blob side."""

    prefix: str

    def chunk(self, name: str, index: int) -> bytes:
        """Key of one chunk."""
        return f"{self.prefix}blob:{name}:{index}".encode()

    def blob(self, blob: str) -> list[bytes]:
        """Keys of all chunks of a blob id, in order; errors as `parse_blob_id`."""
        name, chunks = parse_blob_id(blob)
        return [self.chunk(name, index) for index in range(chunks)]

    def job(self, job_id: str) -> bytes:
        """Key of the set of a job's blob ids."""
        return f"{self.prefix}blobs:{job_id}".encode()


def make_blob_id(name: str, size_bytes: int, chunk_bytes: int) -> str:
    """The id of a blob of this size; an empty blob has one empty chunk."""
    if not name:
        raise ValueError("a blob needs a name")
    return f"{name}#{max(1, -(-size_bytes // chunk_bytes))}"


def parse_blob_id(blob: str) -> tuple[str, int]:
    """(name, number of chunks) of an id.

    Raises:
        BlobMissing: it is not an id that `BlobStore.put` gave.
    """
    match = _BLOB_ID.fullmatch(blob)
    if match is None:
        raise BlobMissing(blob=blob)
    return match[1], int(match[2])


def cut_chunks(pieces: Iterable[BytesLike], chunk_bytes: int) -> Iterator[list[memoryview]]:
    """Regroup pieces into chunks of exactly ``chunk_bytes`` (the last may be shorter, and empty if it is the only one) without copying."""
    chunk: list[memoryview] = []
    room, nothing_yet = chunk_bytes, True
    for piece in pieces:
        view = memoryview(piece)
        while len(view):
            chunk.append(view[:room])
            view = view[room:]
            room -= len(chunk[-1])
            if not room:
                yield chunk
                chunk, room, nothing_yet = [], chunk_bytes, False
    if chunk or nothing_yet:
        yield chunk
