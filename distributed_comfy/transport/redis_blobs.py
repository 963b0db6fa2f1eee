"""The blob store of a cluster: chunks in the blob Redis, a bounded number of them on the way at once.

Large values go through the connection's own send (`send_packed_command`) instead of `redis.Redis.set`, and come straight from its socket
into the buffer that the caller gets: client and parser would copy each of them twice, and take as long again.  A few chunks are on the
way at once: enough to keep server and client busy, and little in the server's buffers.
"""
from __future__ import annotations

import re
import socket
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import accumulate, islice
from typing import Any, TypeVar, cast

import numpy as np
import redis

from distributed_comfy.errors import BlobMissing, BlobStoreFull, ConnectionLost
from distributed_comfy.transport.blobs import BlobKeys, cut_chunks, make_blob_id
from distributed_comfy.transport.frames import BytesLike

T = TypeVar("T")
Command = Sequence[BytesLike]

_BYTES_ON_THE_WAY = 4 * 2**20
"""Of one connection.  Measured over loopback: with more, what lies in the server's buffers no longer fits the processor's caches."""
_CHUNKS_ON_THE_WAY = 16
_OVERHEAD_BYTES = 64
"""What Redis adds to a value.  Its allocator would give 1.25 MiB to a value of 1 MiB and this header: a quarter more memory for nothing."""
_KEYS_PER_COMMAND = 1000
_LINE_BYTES = 4096


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
        self._on_the_way = min(max(1, _BYTES_ON_THE_WAY // chunk_bytes), _CHUNKS_ON_THE_WAY)
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
        buffer = _new_buffer(sum(lengths))
        ends = list(accumulate(lengths))
        rooms = [buffer[end - length : end] for end, length in zip(ends, lengths, strict=True)]
        for batch in _batches(zip(self._keys.blob(blob), rooms, strict=True), self._on_the_way):
            chunks = self._receive([key for key, _ in batch], [room for _, room in batch])
            if any(chunk is None or len(chunk) != len(room) for chunk, (_, room) in zip(chunks, batch, strict=True)):
                raise BlobMissing(blob=blob)
        return buffer

    def chunks(self, blob: str) -> Iterator[BytesLike]:
        """See `BlobStore.chunks`."""
        for keys in _batches(self._keys.blob(blob), self._on_the_way):
            for chunk in self._receive(keys, [None] * len(keys)):
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
        for batch in _batches(chunks, self._on_the_way):
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
        return self._talk(lambda connection: _converse(connection, commands))

    def _receive(self, keys: Sequence[bytes], rooms: Sequence[memoryview | None]) -> list[memoryview | None]:
        """The values of some keys, each in its room (in a new buffer where it has none or another length); None for a key that is gone."""
        return self._talk(lambda connection: _receive_values(connection, keys, rooms))

    def _talk(self, conversation: Callable[[Any], list[T | redis.ResponseError]]) -> list[T]:
        """Have a conversation on a connection of the pool, again on a new one if it breaks; raises an error among the replies."""
        with self._translated():
            pool = self._client.connection_pool
            connection: Any = pool.get_connection()
            try:
                replies = connection.retry.call_with_retry(lambda: conversation(connection), lambda _: connection.disconnect())
            finally:
                pool.release(connection)
            for reply in replies:
                if isinstance(reply, redis.ResponseError):
                    raise reply
        return cast("list[T]", replies)

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


def _receive_values(
    connection: Any, keys: Sequence[bytes], rooms: Sequence[memoryview | None]
) -> list[memoryview | redis.ResponseError | None]:
    """`_converse` for GET, past the parser, which holds nothing between two commands."""
    connection.send_packed_command([part for key in keys for part in _pack(b"GET", key)])
    with ExitStack() as undo:
        undo.callback(connection.disconnect)  # whoever gets it next must not find the rest of broken replies
        try:
            values = [_read_value(connection._sock, room) for room in rooms]
        except TimeoutError as error:
            raise redis.TimeoutError("the server did not answer in time") from error
        except OSError as error:
            raise redis.ConnectionError(str(error)) from error
        undo.pop_all()
    return values


def _read_value(sock: socket.socket, room: memoryview | None) -> memoryview | redis.ResponseError | None:
    """The reply to one GET; an error reply is a value, as in `_converse`."""
    line = _read_line(sock)
    if line.startswith(b"-LOADING"):
        raise redis.BusyLoadingError(line[1:].decode(errors="replace"))
    if line.startswith(b"-"):
        return redis.ResponseError(line[1:].decode(errors="replace"))
    if line in (b"$-1", b"_"):  # RESP 2 and 3
        return None
    if not re.fullmatch(rb"\$\d+", line):
        raise redis.InvalidResponse(f"{line!r} is no reply to GET")
    size_bytes = int(line[1:])
    value = room if room is not None and len(room) == size_bytes else _new_buffer(size_bytes)
    _fill(sock, value)
    _fill(sock, memoryview(bytearray(2)))
    return value


def _read_line(sock: socket.socket) -> bytes:
    """The next line without its end; byte by byte, because what follows it belongs elsewhere."""
    line = bytearray()
    while not line.endswith(b"\r\n"):
        byte = sock.recv(1)
        if not byte or len(line) > _LINE_BYTES:
            raise ConnectionError("the server closed the connection" if not byte else "the server sends nonsense")
        line += byte
    return bytes(line[:-2])


def _fill(sock: socket.socket, room: memoryview) -> None:
    while room:
        size_bytes = sock.recv_into(room)
        if not size_bytes:
            raise ConnectionError("the server closed the connection")
        room = room[size_bytes:]


def _new_buffer(size_bytes: int) -> memoryview:
    """Not filled with zeros first, unlike a bytearray."""
    return np.empty(size_bytes, np.uint8).data


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
