"""The blob store of a cluster: chunks in the blob Redis, a bounded number of them on the way at once.

Large values go through the connection's own send and read (`send_packed_command`, `read_response`) instead of `redis.Redis.set`, which
would copy each of them twice.  Two chunks are on the way at once: enough to keep server and client busy, and little in the server's
buffers.
"""
from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any, TypeVar

import numpy as np
import redis

from distributed_comfy.errors import BlobMissing, BlobStoreFull, ConnectionLost
from distributed_comfy.transport.blobs import BlobKeys, cut_chunks, make_blob_id
from distributed_comfy.transport.frames import BytesLike

T = TypeVar("T")
Command = Sequence[BytesLike]

_CHUNKS_ON_THE_WAY = 2
_OVERHEAD_BYTES = 64
"""What Redis adds to a value.  Its allocator would give 5 MiB to a value of 4 MiB and this header: a third more memory for nothing."""
_KEYS_PER_COMMAND = 1000


class RedisBlobStore:
    """A `BlobStore` in a Redis or Valkey server.

    Args:
        client: its replies must be bytes (``decode_responses=False``), as `state.connection.connect` gives.
        prefix: first part of every key, ``dc:``.
        chunk_bytes: memory of a chunk in the server, best a power of two; readers and writers may use different ones.
        ttl_s: a blob that nobody unlinked vanishes after this long.
    """

    def __init__(self, client: redis.Redis, *, prefix: str, chunk_bytes: int, ttl_s: int) -> None:
        if chunk_bytes <= _OVERHEAD_BYTES:
            raise ValueError(f"chunks of {chunk_bytes} bytes hold nothing")
        self._client = client
        self._keys = BlobKeys(prefix)
        self._chunk_bytes = chunk_bytes - _OVERHEAD_BYTES
        self._ttl_s = ttl_s
        self._target = _target(client)

    def blob_id(self, name: str, size_bytes: int) -> str:
        """See `BlobStore.blob_id`."""
        return make_blob_id(name, size_bytes, self._chunk_bytes)

    def put(
        self, name: str, pieces: Iterable[BytesLike], *, size_bytes: int | None = None, job_id: str = "", ttl_s: int | None = None
    ) -> str:
        """See `BlobStore.put`."""
        if size_bytes is None:
            pieces = list(pieces)
            size_bytes = sum(len(piece) for piece in pieces)
        blob = self.blob_id(name, size_bytes)
        ttl_s = ttl_s or self._ttl_s
        try:
            if job_id:
                self._enter(job_id, blob, ttl_s)
            self._put_chunks(name, self._counted(name, pieces, size_bytes), ttl_s)
        except (BlobStoreFull, ValueError):
            self.unlink([blob])
            raise
        return blob

    def get(self, blob: str) -> memoryview:
        """See `BlobStore.get`."""
        lengths = self._exchange([_pack(b"STRLEN", key) for key in self._keys.blob(blob)])
        if len(lengths) > 1 and 0 in lengths:
            raise BlobMissing(blob=blob)
        buffer: memoryview = np.empty(sum(lengths), np.uint8).data
        end = 0
        for chunk in self.chunks(blob):
            start, end = end, end + len(chunk)
            if end > len(buffer):
                raise BlobMissing(blob=blob)
            buffer[start:end] = chunk
        if end < len(buffer):
            raise BlobMissing(blob=blob)
        return buffer

    def chunks(self, blob: str) -> Iterator[BytesLike]:
        """See `BlobStore.chunks`."""
        for keys in _batches(self._keys.blob(blob), _CHUNKS_ON_THE_WAY):
            for chunk in self._exchange([_pack(b"GET", key) for key in keys]):
                if chunk is None:
                    raise BlobMissing(blob=blob)
                yield chunk

    def exists(self, blobs: Sequence[str]) -> list[bool]:
        """See `BlobStore.exists`."""
        found: list[bool] = []
        for batch in _batches(blobs, _KEYS_PER_COMMAND):
            keys = [self._keys.blob(blob) for blob in batch]
            counts = self._exchange([_pack(b"EXISTS", *of_blob) for of_blob in keys])
            found += [count == len(of_blob) for count, of_blob in zip(counts, keys, strict=True)]
        return found

    def unlink(self, blobs: Iterable[str]) -> None:
        """See `BlobStore.unlink`."""
        keys = (key for blob in blobs for key in self._keys.blob(blob))
        for batch in _batches(keys, _KEYS_PER_COMMAND):
            self._exchange([_pack(b"UNLINK", *batch)])

    def drop_job(self, job_id: str) -> None:
        """See `BlobStore.drop_job`."""
        job = self._keys.job(job_id)
        (members,) = self._exchange([_pack(b"SMEMBERS", job)])
        for batch in _batches(members, _KEYS_PER_COMMAND):
            # The blobs first: whoever is interrupted here finds the rest in the set.
            self.unlink(member.decode() for member in batch)
            self._exchange([_pack(b"SREM", job, *batch)])

    def memory_limit(self) -> int | None:
        """See `BlobStore.memory_limit`."""
        with self._translated():
            return int(self._client.info("memory").get("maxmemory", 0)) or None

    def _enter(self, job_id: str, blob: str, ttl_s: int) -> None:
        """Note the blob before it exists, so that no moment is left in which a crash would leave it behind."""
        job = self._keys.job(job_id)
        lasting_s = max(ttl_s, self._ttl_s)
        self._exchange([_pack(b"SADD", job, blob.encode()), _pack(b"EXPIRE", job, b"%d" % lasting_s)])

    def _put_chunks(self, name: str, pieces: Iterable[BytesLike], ttl_s: int) -> None:
        chunks = enumerate(cut_chunks(pieces, self._chunk_bytes))
        for batch in _batches(chunks, _CHUNKS_ON_THE_WAY):
            self._exchange([_pack_set(self._keys.chunk(name, index), chunk, ttl_s) for index, chunk in batch])

    @staticmethod
    def _counted(name: str, pieces: Iterable[BytesLike], size_bytes: int) -> Iterator[BytesLike]:
        """The pieces, checked against the length that the blob's id was made from."""
        found_bytes = 0
        for piece in pieces:
            found_bytes += len(piece)
            if found_bytes > size_bytes:
                break
            yield piece
        if found_bytes != size_bytes:
            raise ValueError(f"blob {name} has {found_bytes} bytes or more, not {size_bytes}")

    def _exchange(self, commands: Sequence[Command]) -> list[Any]:
        """Send packed commands together and read their replies, again on a new connection if that one breaks.

        Every command of this file may run twice, so none needs to know whether a lost one was executed.
        """
        with self._translated():
            pool = self._client.connection_pool
            connection: Any = pool.get_connection()
            try:
                replies: list[Any] = connection.retry.call_with_retry(
                    lambda: _converse(connection, commands),
                    lambda _: connection.disconnect(),
                )
            finally:
                pool.release(connection)
            for reply in replies:
                if isinstance(reply, redis.ResponseError):
                    raise reply
        return replies

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except redis.exceptions.OutOfMemoryError as error:
            raise BlobStoreFull(target=self._target, reason=str(error)) from error
        except redis.RedisError as error:
            raise ConnectionLost(target=f"the blob Redis at {self._target}", reason=str(error) or type(error).__name__) from error


def _converse(connection: Any, commands: Sequence[Command]) -> list[Any]:
    """One reply per command; an error reply is an element, so that the ones after it are still read."""
    connection.send_packed_command([part for command in commands for part in command])
    return [_reply(lambda: connection.read_response(disable_decoding=True)) for _ in commands]


def _reply(read: Callable[[], T]) -> T | redis.ResponseError:
    try:
        return read()
    except redis.ResponseError as error:
        return error


def _pack(*arguments: bytes) -> Command:
    """A command in Redis' protocol."""
    return [b"*%d\r\n" % len(arguments) + b"".join(b"$%d\r\n%b\r\n" % (len(argument), argument) for argument in arguments)]


def _pack_set(key: bytes, chunk: Sequence[memoryview], ttl_s: int) -> Command:
    """``SET key chunk EX ttl`` with the chunk's pieces as they are, not joined."""
    size_bytes, expiry = sum(len(piece) for piece in chunk), b"%d" % ttl_s
    head = b"*5\r\n$3\r\nSET\r\n$%d\r\n%b\r\n$%d\r\n" % (len(key), key, size_bytes)
    return [head, *chunk, b"\r\n$2\r\nEX\r\n$%d\r\n%b\r\n" % (len(expiry), expiry)]


def _batches(elements: Iterable[T], size: int) -> Iterator[list[T]]:
    remaining = iter(elements)
    while batch := list(islice(remaining, size)):
        yield batch


def _target(client: redis.Redis) -> str:
    """Where the client connects to, without its password."""
    options = client.connection_pool.connection_kwargs
    return str(options.get("path") or f"{options.get('host', 'localhost')}:{options.get('port', 6379)}")
