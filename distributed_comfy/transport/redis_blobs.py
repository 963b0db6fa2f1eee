"""The blob store of a cluster: chunks in the blob Redis, a bounded number of them on the way at once.

Large values go through the connection's own send (`send_packed_command`) instead of `redis.Redis.set`, and come straight from its socket
into the buffer that the caller gets: client and parser would copy each of them twice, and take as long again.  A few chunks are on the
way at once: enough to keep server and client busy, and little in the server's buffers.  The next one follows as soon as one has arrived,
so a blob of any size takes one round trip and the time of its bytes, however far away the server is.
"""
from __future__ import annotations

import re
import socket
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from itertools import accumulate, chain, islice
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
        # Noted before it exists, so that no moment is left in which a crash would leave it behind.
        noting = self._note(job_id, blob, ttl_s) if job_id else []
        chunks = enumerate(cut_chunks(self._counted(name, pieces, size_bytes), self._chunk_bytes))
        sets = (_pack_set(self._keys.chunk(name, index), chunk, ttl_s) for index, chunk in chunks)
        try:
            self._talk(_Upload(chain(noting, sets), self._on_the_way))
        except (BlobStoreFull, ValueError):
            self.unlink([blob])
            raise
        return blob

    def get(self, blob: str) -> memoryview:
        """See `BlobStore.get`."""
        download = _Download(self._keys.blob(blob), self._on_the_way)
        self._talk(download)
        if download.missing:
            raise BlobMissing(blob=blob)
        return download.content

    def chunks(self, blob: str) -> Iterator[BytesLike]:
        """See `BlobStore.chunks`; holds a connection until the last piece is taken."""
        pool = self._client.connection_pool
        with self._translated():
            connection: Any = pool.get_connection()
            chunks = _Chunks(self._keys.blob(blob), self._on_the_way)
            try:
                while chunks.taken < len(chunks.keys):
                    chunk = connection.retry.call_with_retry(lambda: chunks.take(connection), lambda _: connection.disconnect())
                    if chunk is None:
                        raise BlobMissing(blob=blob)
                    if isinstance(chunk, redis.ResponseError):
                        raise chunk
                    yield chunk
            finally:
                if chunks.taken < chunks.asked:  # whoever gets the connection next must not find the rest
                    connection.disconnect()
                pool.release(connection)

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

    def capacity(self) -> int | None:
        """See `BlobStore.capacity`: ``maxmemory`` counts what the server needs for itself, too."""
        with self._translated():
            memory = self._client.info("memory")
        limit = int(memory.get("maxmemory", 0))
        return max(0, limit - int(memory.get("used_memory_startup", 0))) if limit else None

    def offered(self, job_id: str) -> AbstractContextManager[object]:
        """See `BlobStore.offered`; there is no shorter way."""
        return nullcontext()

    def _note(self, job_id: str, blob: str, ttl_s: int) -> list[Command]:
        job = self._keys.job(job_id)
        lasting_s = max(ttl_s, self._ttl_s)
        return [_pack(b"SADD", job, blob.encode()), _pack(b"EXPIRE", job, b"%d" % lasting_s)]

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


class _Upload:
    """A conversation that sends any number of commands, a few unanswered at a time; on a new connection it goes on with those."""

    def __init__(self, commands: Iterable[Command], on_the_way: int) -> None:
        self._commands = iter(commands)
        self._on_the_way = on_the_way
        self._unanswered: deque[Command] = deque()
        self._refused: list[redis.ResponseError] = []

    def __call__(self, connection: Any) -> list[redis.ResponseError]:
        """Send the rest; error replies, of which the first ends it."""
        with _in_step(connection):
            if self._unanswered:
                connection.send_packed_command([part for command in self._unanswered for part in command])
            while not self._refused and (command := next(self._commands, None)) is not None:
                self._unanswered.append(command)
                connection.send_packed_command(command)
                if len(self._unanswered) >= self._on_the_way:
                    self._read(connection)
            while self._unanswered:
                self._read(connection)
        return self._refused

    def _read(self, connection: Any) -> None:
        reply = _reply(lambda: connection.read_response(disable_decoding=True))
        self._unanswered.popleft()
        if isinstance(reply, redis.ResponseError):
            self._refused.append(reply)


class _Chunks:
    """GETs for the chunks of a blob, a few unanswered at a time."""

    def __init__(self, keys: Sequence[bytes], on_the_way: int) -> None:
        self.keys = keys
        self.taken = 0
        """So many replies were read."""
        self.asked = 0
        """So many were asked for on this connection, or read on one before."""
        self._on_the_way = on_the_way

    def ask(self) -> Command:
        """What to send next; empty where enough is on the way."""
        wanted = self.keys[self.asked : self.taken + self._on_the_way]
        self.asked += len(wanted)
        return [part for key in wanted for part in _pack(b"GET", key)]

    def take(self, connection: Any, room: memoryview | None = None) -> memoryview | redis.ResponseError | None:
        """The next chunk, past the parser, which holds nothing between two commands; an error reply is a value, None a key that is gone.

        Args:
            room: for the chunk; a new buffer where there is none, or it has another length.
        """
        with _in_step(connection, self.forget), _as_redis_errors():
            if command := self.ask():
                connection.send_packed_command(command)
            value = _read_value(connection._sock, room)
            self.taken += 1
        return value

    def forget(self) -> None:
        """The connection is gone, and with it what was asked for."""
        self.asked = self.taken


class _Download:
    """A conversation that gets all chunks of a blob into one buffer, whose size it asks for in the same breath."""

    def __init__(self, keys: Sequence[bytes], on_the_way: int) -> None:
        self.content = memoryview(b"")
        self.missing = False
        """A chunk is not there, or has another length by now."""
        self._chunks = _Chunks(keys, on_the_way)
        self._rooms: list[memoryview] | None = None

    def __call__(self, connection: Any) -> list[redis.ResponseError]:
        """Get what is still to get; an error reply is told when all others are read."""
        refused = self._make_room(connection) if self._rooms is None else []
        rooms = self._rooms or []
        while self._chunks.taken < (self._chunks.asked if refused or self.missing else len(self._chunks.keys)):
            room = rooms[self._chunks.taken] if rooms else None
            chunk = self._chunks.take(connection, room)
            if isinstance(chunk, redis.ResponseError):
                refused.append(chunk)
            elif chunk is None or (room is not None and len(chunk) != len(room)):
                self.missing = True
        return refused

    def _make_room(self, connection: Any) -> list[redis.ResponseError]:
        """Ask for all lengths and the first chunks; a buffer, unless a length is an error."""
        with _in_step(connection, self._chunks.forget), _as_redis_errors():
            lengths_asked = [part for key in self._chunks.keys for part in _pack(b"STRLEN", key)]
            connection.send_packed_command([*lengths_asked, *self._chunks.ask()])
            lengths = [_read_length(connection._sock) for _ in self._chunks.keys]
        refused = [length for length in lengths if isinstance(length, redis.ResponseError)]
        known = [length for length in lengths if isinstance(length, int)]
        self.missing = len(known) > 1 and 0 in known
        if not refused and not self.missing:
            self.content = _new_buffer(sum(known))
            ends = list(accumulate(known))
            self._rooms = [self.content[end - length : end] for end, length in zip(ends, known, strict=True)]
        return refused


@contextmanager
def _in_step(connection: Any, forget: Callable[[], None] = lambda: None) -> Iterator[None]:
    """What breaks off inside ends the connection, so that nobody who gets it next finds the rest of replies."""
    with ExitStack() as undo:
        undo.callback(forget)
        undo.callback(connection.disconnect)
        yield
        undo.pop_all()


@contextmanager
def _as_redis_errors() -> Iterator[None]:
    """For what reads from the socket past the client; not for what may read files."""
    try:
        yield
    except TimeoutError as error:
        raise redis.TimeoutError("the server did not answer in time") from error
    except OSError as error:
        raise redis.ConnectionError(str(error)) from error


def _read_length(sock: socket.socket) -> int | redis.ResponseError:
    """The reply to one STRLEN; an error reply is a value, as in `_converse`."""
    line = _read_line(sock)
    if (refused := _refusal(line)) is not None:
        return refused
    if not re.fullmatch(rb":\d+", line):
        raise redis.InvalidResponse(f"{line!r} is no reply to STRLEN")
    return int(line[1:])


def _read_value(sock: socket.socket, room: memoryview | None) -> memoryview | redis.ResponseError | None:
    """The reply to one GET; an error reply is a value, as in `_converse`."""
    line = _read_line(sock)
    if (refused := _refusal(line)) is not None:
        return refused
    if line in (b"$-1", b"_"):  # RESP 2 and 3
        return None
    if not re.fullmatch(rb"\$\d+", line):
        raise redis.InvalidResponse(f"{line!r} is no reply to GET")
    size_bytes = int(line[1:])
    value = room if room is not None and len(room) == size_bytes else _new_buffer(size_bytes)
    _fill(sock, value)
    _fill(sock, memoryview(bytearray(2)))
    return value


def _refusal(line: bytes) -> redis.ResponseError | None:
    if line.startswith(b"-LOADING"):
        raise redis.BusyLoadingError(line[1:].decode(errors="replace"))
    return redis.ResponseError(line[1:].decode(errors="replace")) if line.startswith(b"-") else None


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
