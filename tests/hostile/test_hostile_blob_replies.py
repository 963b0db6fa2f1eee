"""What a blob server may answer to a reader that takes values straight from the socket: errors, nonsense, half a value, other lengths."""
from __future__ import annotations

import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from distributed_comfy.errors import BlobMissing, ConnectionLost
from distributed_comfy.transport.redis_blobs import RedisBlobStore

LENGTHS = [b":3\r\n", b":2\r\n"]
VALUES = [b"$3\r\nabc\r\n", b"$2\r\nde\r\n"]
CUT = b"CUT"
"""At the end of a reply: the connection is closed behind it."""


@contextmanager
def server_that_says(*replies: bytes) -> Iterator[RedisBlobStore]:
    """A store on a server that answers each STRLEN and GET with the next of these."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=answer, args=(listener, list(replies)), daemon=True).start()
        url = f"redis://127.0.0.1:{listener.getsockname()[1]}/0"
        with redis.Redis.from_url(url, protocol=2, retry=Retry(NoBackoff(), 3), socket_timeout=10) as client:
            yield RedisBlobStore(client, prefix="dc:", chunk_bytes=4096, ttl_s=60)


def answer(listener: socket.socket, replies: list[bytes]) -> None:
    with suppress(OSError):  # the listener is closed: the test is over
        while replies:
            connection, _ = listener.accept()
            with connection, suppress(ConnectionError):
                converse(connection, replies)


def converse(connection: socket.socket, replies: list[bytes]) -> None:
    while request := connection.recv(65536):
        for name in re.findall(rb"\*\d+\r\n\$\d+\r\n(\w+)\r\n", request):
            reply = replies.pop(0) if name in (b"STRLEN", b"GET") and replies else b"+OK\r\n"
            connection.sendall(reply.removesuffix(CUT))
            if reply.endswith(CUT):
                return


def test_two_chunks_come_home() -> None:
    with server_that_says(*LENGTHS, *VALUES) as store:
        assert bytes(store.get("a#2")) == b"abcde"


@pytest.mark.parametrize("broken", [CUT, b"$3\r\nab" + CUT, b"-LOADING Redis is loading\r\n" + CUT])
def test_a_reply_that_breaks_off_is_asked_for_again(broken: bytes) -> None:
    with server_that_says(*LENGTHS, broken, *VALUES) as store:
        assert bytes(store.get("a#2")) == b"abcde"
    with server_that_says(broken, *VALUES) as store:
        assert [bytes(chunk) for chunk in store.chunks("a#2")] == [b"abc", b"de"]


def test_after_a_break_only_what_is_missing_is_asked_for_again() -> None:
    with server_that_says(*LENGTHS, VALUES[0], b"$2" + CUT, VALUES[1]) as store:
        assert bytes(store.get("a#2")) == b"abcde"
    with server_that_says(VALUES[0], b"$2" + CUT, VALUES[1]) as store:
        assert [bytes(chunk) for chunk in store.chunks("a#2")] == [b"abc", b"de"]


@pytest.mark.parametrize("broken", [b":3" + CUT, b":3\r\n" + CUT])
def test_lengths_that_break_off_are_asked_for_again(broken: bytes) -> None:
    with server_that_says(broken, *LENGTHS, *VALUES) as store:
        assert bytes(store.get("a#2")) == b"abcde"


@pytest.mark.parametrize("nonsense", [b"+3\r\n", b":-3\r\n", b":x\r\n", b"$1\r\n3\r\n"])
def test_a_length_that_is_none_is_a_lost_connection(nonsense: bytes) -> None:
    with server_that_says(*[nonsense] * 10) as store, pytest.raises(ConnectionLost):
        store.get("a#2")


def test_whoever_stops_half_way_leaves_no_replies_to_the_next() -> None:
    with server_that_says(*VALUES, b":1\r\n", b"$1\r\nx\r\n") as store:
        chunks = store.chunks("a#2")
        assert bytes(next(chunks)) == b"abc"
        chunks.close()  # type: ignore[attr-defined]
        assert bytes(store.get("b#1")) == b"x"


@pytest.mark.parametrize("nonsense", [b":5\r\n", b"*1\r\n", b"$-7\r\n", b"$x\r\n", b"x" * 10_000])
def test_a_reply_that_is_none_is_a_lost_connection(nonsense: bytes) -> None:
    with server_that_says(*LENGTHS, *[nonsense] * 10) as store, pytest.raises(ConnectionLost):
        store.get("a#2")


def test_an_error_is_told_and_the_reply_behind_it_is_still_read() -> None:
    with server_that_says(*LENGTHS, b"-WRONGTYPE no string\r\n", VALUES[1], b":1\r\n", b"$1\r\nx\r\n") as store:
        with pytest.raises(ConnectionLost, match="WRONGTYPE no string"):
            store.get("a#2")
        assert bytes(store.get("b#1")) == b"x"


@pytest.mark.parametrize("value", [b"$-1\r\n", b"_\r\n", b"$4\r\nabcd\r\n", b"$0\r\n\r\n"])
def test_a_chunk_that_has_gone_or_changed_meanwhile_is_a_missing_blob(value: bytes) -> None:
    with server_that_says(*LENGTHS, value, VALUES[1]) as store, pytest.raises(BlobMissing):
        store.get("a#2")
