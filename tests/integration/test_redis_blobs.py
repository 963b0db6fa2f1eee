"""What only the Redis blob store does: its keys, broken connections, lost chunks, and little memory in the server."""
from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from distributed_comfy.errors import BlobMissing, ConnectionLost
from distributed_comfy.state.embedded import start_embedded
from distributed_comfy.transport.redis_blobs import RedisBlobStore

CHUNK_BYTES = 4 * 2**20  # of memory; 64 bytes of it are Redis' own
MIB = 2**20


@pytest.fixture
def client(blob_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(blob_url, retry=Retry(NoBackoff(), 2)) as client:
        yield client


@pytest.fixture
def store(client: redis.Redis) -> RedisBlobStore:
    return RedisBlobStore(client, prefix="dc:", chunk_bytes=CHUNK_BYTES, ttl_s=60)


def test_the_keys_are_the_documented_ones_and_every_one_expires(client: redis.Redis, store: RedisBlobStore) -> None:
    store.put("job/claim/0", [bytes(CHUNK_BYTES + 1)], job_id="abc")
    assert sorted(client.keys()) == [b"dc:blob:job/claim/0:0", b"dc:blob:job/claim/0:1", b"dc:blobs:abc"]
    assert client.strlen("dc:blob:job/claim/0:1") == 65
    assert all(0 < client.ttl(key) <= 60 for key in client.scan_iter())


def test_a_blob_that_lost_a_chunk_is_missing_as_a_whole(client: redis.Redis, store: RedisBlobStore) -> None:
    blob = store.put("a", [bytes(3 * CHUNK_BYTES)])
    client.delete("dc:blob:a:1")
    assert store.exists([blob]) == [False]
    with pytest.raises(BlobMissing):
        store.get(blob)
    store.unlink([blob])
    assert client.dbsize() == 0


def test_readers_need_not_know_the_writers_chunk_size(client: redis.Redis, store: RedisBlobStore) -> None:
    small = RedisBlobStore(client, prefix="dc:", chunk_bytes=64 + 7, ttl_s=60)
    assert bytes(store.get(small.put("a", [b"0123456789abcdef"]))) == b"0123456789abcdef"


def test_connections_that_are_cut_are_replaced_and_nothing_is_lost(client: redis.Redis, blob_url: str, store: RedisBlobStore) -> None:
    done = threading.Event()

    def cut() -> None:
        with redis.Redis.from_url(blob_url) as killer:
            while not done.wait(0.03):
                killer.client_kill_filter(_type="normal", skipme=True)

    client.set_retry(Retry(NoBackoff(), 50))
    killer = threading.Thread(target=cut)
    killer.start()
    try:
        for index in range(10):
            content = bytes([index]) * (3 * CHUNK_BYTES)
            assert bytes(store.get(store.put("a", [content], job_id="j"))) == content
    finally:
        done.set()
        killer.join()


def test_an_unreachable_server_is_a_lost_connection_without_the_password() -> None:
    with redis.Redis.from_url("redis://:secret@127.0.0.1:1/0", retry=Retry(NoBackoff(), 1)) as client:
        store = RedisBlobStore(client, prefix="dc:", chunk_bytes=CHUNK_BYTES, ttl_s=60)
        calls = [
            lambda: store.put("a", [b"x"]),
            lambda: store.get("a#1"),
            lambda: store.exists(["a#1"]),
            lambda: store.unlink(["a#1"]),
            lambda: store.drop_job("j"),
            store.memory_limit,
        ]
        for call in calls:
            with pytest.raises(ConnectionLost) as caught:
                call()
            assert "127.0.0.1:1" in str(caught.value)
            assert "secret" not in str(caught.value)


def test_a_refused_command_leaves_the_connection_in_step(client: redis.Redis, store: RedisBlobStore) -> None:
    client.lpush("dc:blob:a:0", "not a chunk")
    with pytest.raises(ConnectionLost, match="WRONGTYPE"):
        store.get("a#2")
    assert bytes(store.get(store.put("b", [b"b"]))) == b"b"


def test_a_blob_takes_little_more_memory_than_its_bytes_at_rest_and_on_the_way(tmp_path: Path) -> None:
    """On a server of its own: nothing resets the peak of one that others have used."""
    with start_embedded(tmp_path, private=True) as server, redis.Redis.from_url(server.blob_url) as client:
        store = RedisBlobStore(client, prefix="dc:", chunk_bytes=CHUNK_BYTES, ttl_s=60)

        def memory(field: str) -> int:
            return int(client.info("memory")[field]) - empty_bytes

        image, empty_bytes = bytes(64 * MIB), 0
        store.unlink([store.put("warm", [bytes(3 * CHUNK_BYTES)])])
        empty_bytes = memory("used_memory")
        blob = store.put("image", [image])
        assert memory("used_memory") < 1.02 * len(image) + 2 * CHUNK_BYTES
        assert memory("used_memory_peak") < 1.02 * len(image) + 4 * CHUNK_BYTES
        assert bytes(store.get(blob)) == image
        assert memory("used_memory_peak") < 1.02 * len(image) + 4 * CHUNK_BYTES
        store.unlink([blob])
