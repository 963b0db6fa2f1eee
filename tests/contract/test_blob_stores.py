"""One suite over all blob stores: what every caller may rely on."""
from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
import redis

from distributed_comfy.errors import BlobMissing, BlobStoreFull
from distributed_comfy.transport.blobs import BlobStore
from distributed_comfy.transport.memory_blobs import MemoryBlobStore
from distributed_comfy.transport.near_blobs import NearBlobStore
from distributed_comfy.transport.redis_blobs import RedisBlobStore
from distributed_comfy.transport.shared_memory import open_shared_memory

CHUNK_BYTES = 1000
TTL_S = 60


@dataclass
class Case:
    """A store, how to let its time pass, and one like it with little memory."""

    store: BlobStore
    let_pass: Callable[[int], None]
    tight: Callable[[], BlobStore]
    count: Callable[[], int]
    """Entries that the store holds in all, to find what was left behind."""


@dataclass
class Clock:
    now_s: float = 0.0

    def __call__(self) -> float:
        return self.now_s

    def advance(self, seconds: int) -> None:
        self.now_s += seconds


@pytest.fixture(params=["memory", "redis", "near"])
def case(request: pytest.FixtureRequest) -> Case:
    if request.param == "memory":
        return _memory_case()
    case = _redis_case(request)
    return _near_case(case, request) if request.param == "near" else case


@pytest.fixture
def store(case: Case) -> BlobStore:
    return case.store


def _memory_case() -> Case:
    clock = Clock()
    store = MemoryBlobStore(chunk_bytes=CHUNK_BYTES, ttl_s=TTL_S, clock=clock)
    tight = MemoryBlobStore(chunk_bytes=CHUNK_BYTES, ttl_s=TTL_S, memory_limit_bytes=2**20)
    return Case(store, clock.advance, lambda: tight, lambda: sum(store.exists(list(store._blobs))))


def _redis_case(request: pytest.FixtureRequest) -> Case:
    client = redis.Redis.from_url(request.getfixturevalue("blob_url"))
    request.addfinalizer(client.close)
    store = RedisBlobStore(client, prefix="t:", chunk_bytes=CHUNK_BYTES + 64, ttl_s=TTL_S)  # 64: what Redis adds

    def let_pass(seconds: int) -> None:
        for key in client.scan_iter():
            client.pexpire(key, max(1, client.pttl(key) - seconds * 1000))
        threading.Event().wait(0.02)

    def tight() -> BlobStore:
        request.addfinalizer(lambda: client.config_set("maxmemory", 0))
        client.config_set("maxmemory", client.info("memory")["used_memory"] + 2**19)
        return store

    return Case(store, let_pass, tight, lambda: sum(client.exists(key) for key in client.scan_iter()))


def _near_case(far: Case, request: pytest.FixtureRequest) -> Case:
    """The collector's side, whose blobs lie in the Redis; results in memory have tests of their own."""
    memory = open_shared_memory(request.getfixturevalue("tmp_path") / "memory")

    def near(store: BlobStore) -> BlobStore:
        return NearBlobStore(store, memory)

    return Case(near(far.store), far.let_pass, lambda: near(far.tight()), far.count)


def pattern(size_bytes: int) -> bytes:
    """Bytes in which every place looks different."""
    return bytes(itertools.islice(itertools.cycle(bytes(range(251))), size_bytes))


@pytest.mark.parametrize("size_bytes", [0, 1, 999, 1000, 1001, 2000, 2001, 12_345])
def test_a_blob_comes_back_whole(store: BlobStore, size_bytes: int) -> None:
    content = pattern(size_bytes)
    blob = store.put("job/claim/0", [content])
    assert bytes(store.get(blob)) == content
    assert b"".join(store.chunks(blob)) == content


@pytest.mark.parametrize("size_bytes", [0, 1, 1000, 1001, 12_345])
def test_the_id_is_known_before_the_blob_is_there(store: BlobStore, size_bytes: int) -> None:
    expected = store.blob_id("a", size_bytes)
    assert store.exists([expected]) == [False]
    assert store.put("a", [pattern(size_bytes)]) == expected
    assert expected.rpartition("#")[2] == str(max(1, -(-size_bytes // CHUNK_BYTES)))


@pytest.mark.parametrize("cuts", [[], [0], [1], [1000], [999, 1001], [500, 1500, 1500, 2500], [1, 2, 3, 2999]])
def test_how_the_pieces_are_cut_makes_no_difference(store: BlobStore, cuts: list[int]) -> None:
    content = pattern(3000)
    edges = [0, *cuts, 3000]
    pieces = [memoryview(content)[a:b] for a, b in itertools.pairwise(edges)]
    assert bytes(store.get(store.put("a", pieces))) == content


def test_a_stream_of_known_length_is_stored_without_being_collected_first(store: BlobStore) -> None:
    blob = store.put("a", (pattern(700) for _ in range(5)), size_bytes=3500)
    assert bytes(store.get(blob)) == pattern(700) * 5


@pytest.mark.parametrize("claimed_bytes", [3499, 3501, 1000, 9999])
def test_a_stream_of_another_length_is_refused_and_leaves_nothing(case: Case, claimed_bytes: int) -> None:
    with pytest.raises(ValueError, match="not " + str(claimed_bytes)):
        case.store.put("a", (pattern(700) for _ in range(5)), size_bytes=claimed_bytes)
    assert case.count() == 0


def test_the_same_put_twice_changes_nothing(case: Case) -> None:
    first = case.store.put("a", [pattern(2500)], job_id="j")
    before = case.count()
    assert case.store.put("a", [pattern(2500)], job_id="j") == first
    assert case.count() == before
    assert bytes(case.store.get(first)) == pattern(2500)


def test_the_buffer_of_get_is_the_callers_own(store: BlobStore) -> None:
    blob = store.put("a", [pattern(1500)])
    store.get(blob)[:] = bytes(1500)
    assert bytes(store.get(blob)) == pattern(1500)


@pytest.mark.parametrize("blob", ["gone#1", "gone#3", "no chunks", "gone#0", "gone#-1", "gone#x", "#1", "", "gone#99999999"])
def test_a_blob_that_is_not_there_is_missing_by_name(store: BlobStore, blob: str) -> None:
    with pytest.raises(BlobMissing) as caught:
        store.get(blob)
    assert caught.value.blob == blob
    with pytest.raises(BlobMissing):
        list(store.chunks(blob))


def test_exists_answers_for_each_id_in_order(store: BlobStore) -> None:
    here = [store.put(name, [pattern(2500)]) for name in ("a", "b")]
    assert store.exists([here[0], "gone#2", here[1]]) == [True, False, True]
    assert store.exists([]) == []


def test_unlink_removes_what_it_is_given_and_minds_nothing_that_is_gone(case: Case) -> None:
    kept, removed = (case.store.put(name, [pattern(2500)]) for name in ("a", "b"))
    case.store.unlink([removed, "gone#2"])
    case.store.unlink([removed])
    case.store.unlink([])
    assert case.store.exists([kept, removed]) == [True, False]
    case.store.unlink([kept])
    assert case.count() == 0


def test_drop_job_removes_every_blob_of_that_job_alone(case: Case) -> None:
    other = case.store.put("x", [pattern(10)], job_id="other")
    loose = case.store.put("y", [pattern(10)])
    mine = [case.store.put(f"a{index}", [pattern(1500)], job_id="mine") for index in range(5)]
    case.store.unlink(mine[:1])
    case.store.drop_job("mine")
    case.store.drop_job("mine")
    case.store.drop_job("never seen")
    assert case.store.exists([*mine, other, loose]) == [False] * 5 + [True, True]
    case.store.drop_job("other")
    case.store.unlink([loose])
    assert case.count() == 0


def test_a_blob_that_nobody_fetched_vanishes(case: Case) -> None:
    short = case.store.put("short", [pattern(1500)], ttl_s=10)
    usual = case.store.put("usual", [pattern(1500)], job_id="j")
    case.let_pass(11)
    assert case.store.exists([short, usual]) == [False, True]
    case.let_pass(TTL_S)
    assert case.store.exists([usual]) == [False]
    assert case.count() == 0


def test_a_full_store_says_so_and_keeps_nothing_of_the_blob(case: Case) -> None:
    tight = case.tight()
    with pytest.raises(BlobStoreFull):
        tight.put("a", [bytes(2**21)], job_id="j")
    assert tight.exists([tight.blob_id("a", 2**21)]) == [False]
    assert bytes(tight.get(tight.put("b", [b"small"]))) == b"small"


def test_the_memory_limit_is_known_where_there_is_one(case: Case) -> None:
    assert case.store.memory_limit() is None
    limit = case.tight().memory_limit()
    assert limit is not None
    assert limit >= 2**19


def test_what_an_empty_store_can_hold_is_known_where_there_is_a_limit(case: Case) -> None:
    assert case.store.capacity() is None
    limit, capacity = case.tight().memory_limit(), case.tight().capacity()
    assert limit is not None and capacity is not None and 0 < capacity <= limit


def test_names_are_any_text(store: BlobStore) -> None:
    names = ["a:b", "a#2", "ä ö", "a\nb", "12:5~0.samples"]
    blobs = [store.put(name, [name.encode()]) for name in names]
    assert [bytes(store.get(blob)).decode() for blob in blobs] == names
    with pytest.raises(ValueError, match="name"):
        store.put("", [b"x"])


def test_many_threads_share_one_store(store: BlobStore) -> None:
    wrong: list[int] = []

    def work(index: int) -> None:
        content = pattern(3000 + index)
        for _ in range(10):
            if bytes(store.get(store.put(f"t{index}", [content], job_id="j"))) != content:
                wrong.append(index)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    store.drop_job("j")
    assert store.exists([store.blob_id(f"t{index}", 3000 + index) for index in range(8)]) == [False] * 8


def test_pieces_that_cannot_be_read_leave_nothing_and_are_told_as_they_are(case: Case) -> None:
    def pieces() -> Iterator[bytes]:
        yield bytes(6 * CHUNK_BYTES)
        raise OSError("the disk is gone")

    before = case.count()
    with pytest.raises(OSError, match="the disk is gone"):
        case.store.put("a", pieces(), size_bytes=12 * CHUNK_BYTES)
    case.store.unlink([case.store.blob_id("a", 12 * CHUNK_BYTES)])
    assert case.count() == before
    assert bytes(case.store.get(case.store.put("b", [b"b"]))) == b"b"
