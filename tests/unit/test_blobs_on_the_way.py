"""How chunks follow each other to and from a far server: the next one as soon as one has arrived, not after every few."""
from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from distributed_comfy.transport.redis_blobs import RedisBlobStore

CHUNK_BYTES, CHUNKS, ON_THE_WAY = 4096, 20, 16
CONTENT = CHUNK_BYTES - 64
"""What one chunk holds."""


class Line:
    """The server's end of one connection, which reads commands one by one."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._file = connection.makefile("rb")

    def read(self) -> list[bytes]:
        """The next command; a test fails here when the client waits for a reply instead."""
        words = int(self._file.readline()[1:])
        return [self._file.read(int(self._file.readline()[1:]) + 2)[:-2] for _ in range(words)]

    def expect(self, count: int, name: bytes) -> None:
        found = [self.read()[0] for _ in range(count)]
        assert found == [name] * count, found

    def say(self, *replies: bytes) -> None:
        self._connection.sendall(b"".join(replies))


@contextmanager
def server(script: Callable[[Line], None]) -> Iterator[RedisBlobStore]:
    """A store on a server that follows a script; what goes wrong in that is raised at the end."""
    failed: list[BaseException] = []

    def follow() -> None:
        try:
            connection, _ = listener.accept()
            with connection:
                connection.settimeout(5)
                line = Line(connection)
                while (command := line.read())[0] != b"FIRST":  # what the client says when it connects
                    line.say(b"$2\r\nOK\r\n" if command[0] == b"PING" else b"+OK\r\n")
                line.say(b"+OK\r\n")
                script(line)
        except BaseException as error:  # noqa: BLE001 - raised again in the test's thread
            failed.append(error)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        follower = threading.Thread(target=follow, daemon=True)
        follower.start()
        url = f"redis://127.0.0.1:{listener.getsockname()[1]}/0"
        with redis.Redis.from_url(url, protocol=2, retry=Retry(NoBackoff(), 0), socket_timeout=10) as client:
            client.execute_command("FIRST")
            yield RedisBlobStore(client, prefix="dc:", chunk_bytes=CHUNK_BYTES, ttl_s=60)
        follower.join()
    if failed:
        raise failed[0]


def test_a_blob_is_noted_and_sent_in_one_breath_and_each_answer_sends_the_next_chunk() -> None:
    def script(line: Line) -> None:
        line.expect(1, b"SADD")
        line.expect(1, b"EXPIRE")
        line.expect(ON_THE_WAY - 2, b"SET")
        for reply in (b":1\r\n", b":1\r\n", *[b"+OK\r\n"] * (CHUNKS - ON_THE_WAY)):
            line.say(reply)
            line.expect(1, b"SET")
        line.say(*[b"+OK\r\n"] * ON_THE_WAY)

    with server(script) as store:
        store.put("a", [bytes(CHUNKS * CONTENT)], job_id="j")


def test_lengths_and_first_chunks_are_asked_for_together_and_each_chunk_asks_for_the_next() -> None:
    def script(line: Line) -> None:
        line.expect(CHUNKS, b"STRLEN")
        line.expect(ON_THE_WAY, b"GET")
        line.say(*[b":1\r\n"] * CHUNKS)
        for _ in range(CHUNKS - ON_THE_WAY):
            line.say(b"$1\r\nx\r\n")
            line.expect(1, b"GET")
        line.say(*[b"$1\r\nx\r\n"] * ON_THE_WAY)

    with server(script) as store:
        assert bytes(store.get(f"a#{CHUNKS}")) == b"x" * CHUNKS


def test_a_stream_of_chunks_keeps_as_many_on_the_way() -> None:
    def script(line: Line) -> None:
        line.expect(ON_THE_WAY, b"GET")
        for _ in range(CHUNKS - ON_THE_WAY):
            line.say(b"$1\r\nx\r\n")
            line.expect(1, b"GET")
        line.say(*[b"$1\r\nx\r\n"] * ON_THE_WAY)

    with server(script) as store:
        assert b"".join(store.chunks(f"a#{CHUNKS}")) == b"x" * CHUNKS


def test_a_refusal_stops_the_upload() -> None:
    def script(line: Line) -> None:
        line.expect(ON_THE_WAY, b"SET")
        line.say(b"-ERR no\r\n", *[b"+OK\r\n"] * (ON_THE_WAY - 1))
        line.expect(1, b"LAST")
        line.say(b"+OK\r\n")

    with server(script) as store:
        with pytest.raises(Exception, match="no"):
            store.put("a", [bytes(CHUNKS * CONTENT)])
        store._client.execute_command("LAST")
