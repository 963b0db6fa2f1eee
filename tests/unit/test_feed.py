"""Feeding a last stage: names known beforehand, a window of bytes, another claim after the first."""
from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distributed_comfy import messages
from distributed_comfy.collector.feed import Feeder, FeedPlan, plan_feed
from distributed_comfy.collector.spool import Spool
from distributed_comfy.errors import BlobStoreFull, ConnectionLost
from distributed_comfy.messages import ItemResult, LiteralValue
from distributed_comfy.transport.feed_names import Feed, bind_feed, feed_lanes
from distributed_comfy.transport.memory_blobs import MemoryBlobStore
from tests.collected_jobs import COLLECTOR, EDGE, FeedReader, all_blobs, audio, capture, fill, image, image_result, job_record, open_spool

SLOTS = [(COLLECTOR, "images"), (COLLECTOR, "audio"), (EDGE, "value")]


class WatchedStore(MemoryBlobStore):
    """Notes how much lay in it at most, and refuses what is put on demand."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.peak_bytes = 0
        self.puts: list[str] = []
        self.failures: list[Exception] = []

    def put(self, name: str, pieces: Iterable[Any], **options: Any) -> str:
        if self.failures:
            raise self.failures.pop()
        blob = super().put(name, pieces, **options)
        self.puts.append(blob)
        self.peak_bytes = max(self.peak_bytes, self.size_bytes)
        return blob

    @property
    def size_bytes(self) -> int:
        return sum(len(content) for content, _ in list(self._blobs.values()))

    def names(self) -> set[str]:
        return set(self._blobs)


@pytest.fixture
def store() -> WatchedStore:
    return WatchedStore(chunk_bytes=1000)


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return open_spool(tmp_path / "spool")


@pytest.fixture
def plan(spool: Spool, store: WatchedStore) -> FeedPlan:
    """Six items of images and audio, and one edge."""
    for index in range(6):
        claim = f"c{index}"
        captures = list(image_result(store, claim, image(index), image(index + 100)).captures)
        captures.append(capture(store, claim, COLLECTOR, "audio", audio(index)))
        if index == 0:
            captures.append(capture(store, claim, EDGE, "value", {"samples": image(7, (1, 4, 2, 2)), "noise_mask": image(8), "n": 3}))
            captures.append(capture(store, claim, EDGE, "value", "a text", list_index=1))
        spool.add(index, claim, ItemResult(captures=tuple(captures)), store)
    store.drop_job(job_record(6).job_id)
    store.peak_bytes = 0
    return plan_feed(job_record(6, last_stage=True, slots=("images", "audio"), edges=(EDGE,)), spool, store)


@contextmanager
def feeding(plan: FeedPlan, spool: Spool, store: WatchedStore, claim_id: str, window_bytes: int = 10**9) -> Iterator[threading.Event]:
    """A feeder in a thread; it must have ended well by itself or after the event that is given."""
    stop = threading.Event()
    ended: list[bool] = []
    feeder = Feeder(plan, spool, store, window_bytes=window_bytes)
    thread = threading.Thread(target=lambda: ended.append(feeder.run(claim_id, stop)))
    thread.start()
    try:
        yield stop
    except BaseException:
        stop.set()
        raise
    finally:
        thread.join(timeout=20)
    assert ended == [not stop.is_set()]


def eventually(reached: Any) -> None:
    deadline = time.monotonic() + 10
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def check_read(read: dict[tuple[str, str], list[Any]]) -> None:
    images = [image(index + extra) for index in range(6) for extra in (0, 100)]
    assert b"".join(found.tobytes() for found in read[COLLECTOR, "images"]) == np.concatenate(images).tobytes()
    for index, found in enumerate(read[COLLECTOR, "audio"]):
        assert found["waveform"].tobytes() == audio(index)["waveform"].tobytes()
        assert found["sample_rate"] == 44_100
    latent, text = read[EDGE, "value"]
    assert np.array_equal(latent["samples"], image(7, (1, 4, 2, 2)))
    assert (latent["n"], text) == (3, "a text")


def bound(plan: FeedPlan, claim_id: str) -> Feed:
    """As a worker gets it: from the JSON in the table, with its own claim."""
    return bind_feed(messages.load(Feed, plan.json), claim_id)


def test_the_plan_uploads_nothing_and_is_the_same_each_time(plan: FeedPlan, spool: Spool, store: WatchedStore) -> None:
    again = plan_feed(job_record(6, last_stage=True, slots=("images", "audio"), edges=(EDGE,)), spool, store)
    assert again == plan
    assert store.names() == set()


def test_the_feed_survives_json_and_two_claims_share_no_blob(plan: FeedPlan) -> None:
    assert messages.load(Feed, plan.json) == plan.feed
    first, second = set(all_blobs(bound(plan, "claim-1"))), set(all_blobs(bound(plan, "claim-2")))
    assert len(first) == len(second) == len(plan.sources) == 12 + 6 + 2
    assert not first & second
    assert not any("{" in blob for blob in first | second)


def test_a_node_id_or_text_with_the_place_of_the_claim_is_left_alone() -> None:
    feed: Feed = {"{claim}": {"value": (LiteralValue("{claim}"),)}}
    assert bind_feed(feed, "c") == feed


def test_a_collector_that_is_not_consumed_is_not_fed(spool: Spool, store: WatchedStore) -> None:
    fill(spool, store, 2)
    assert plan_feed(job_record(2), spool, store).feed == {}


def test_a_blocked_slot_is_an_empty_list(spool: Spool, store: WatchedStore) -> None:
    spool.add(0, "c", ItemResult(blocked=(COLLECTOR, EDGE)), store)
    plan = plan_feed(job_record(1, last_stage=True, edges=(EDGE,)), spool, store)
    assert plan.feed == {COLLECTOR: {"images": ()}, EDGE: {"value": ()}}
    assert Feeder(plan, spool, store, window_bytes=1).run("c", threading.Event())


@pytest.mark.parametrize("window_bytes", [1, 1500, 10**9])
@pytest.mark.parametrize("order", [SLOTS, SLOTS[::-1], [SLOTS[1], SLOTS[2], SLOTS[0]]])
def test_every_order_of_slots_is_served_from_every_window(
    plan: FeedPlan, spool: Spool, store: WatchedStore, window_bytes: int, order: list[tuple[str, str]]
) -> None:
    with feeding(plan, spool, store, "c", window_bytes):
        check_read(FeedReader(store, bound(plan, "c"), order).finish())
    assert store.names() == set()


def test_no_more_lies_in_the_store_than_the_window_and_one_value_per_slot(plan: FeedPlan, spool: Spool, store: WatchedStore) -> None:
    largest = [max(sum(store_bytes(spool, plan, ref.blob) for ref in refs) for refs in lane) for lane in feed_lanes(plan.feed)]
    with feeding(plan, spool, store, "c", 2000):
        check_read(FeedReader(store, bound(plan, "c"), SLOTS[::-1]).finish())
    assert 0 < store.peak_bytes <= 2000 + sum(largest)


def store_bytes(spool: Spool, plan: FeedPlan, blob: str) -> int:
    source = plan.sources[list(all_blobs(plan.feed)).index(blob)]
    return spool.blob_bytes(source.index, source.ref.blob)


def test_when_the_first_worker_died_the_second_is_fed_from_the_start_and_nothing_is_left(
    plan: FeedPlan, spool: Spool, store: WatchedStore
) -> None:
    with feeding(plan, spool, store, "dead", 3000) as stop:
        eventually(lambda: store.names())
        store.unlink(list(all_blobs(bound(plan, "dead")))[:1])  # it read one value before it died
        eventually(lambda: len(store.puts) > 3)
        stop.set()
    assert store.names() == set()
    with feeding(plan, spool, store, "alive", 3000):
        check_read(FeedReader(store, bound(plan, "alive")).finish())
    assert store.names() == set()


def test_a_feeder_that_starts_again_for_the_same_claim_goes_on_where_it_stood(plan: FeedPlan, spool: Spool, store: WatchedStore) -> None:
    reader = FeedReader(store, bound(plan, "c"))
    with feeding(plan, spool, store, "c", 1) as stop:
        eventually(lambda: len(store.puts) > 7)
        stop.set()
    with feeding(plan, spool, store, "c", 1):
        check_read(reader.finish())


def test_a_value_uploaded_just_before_a_crash_and_read_since_keeps_nothing_out(plan: FeedPlan, spool: Spool, store: WatchedStore) -> None:
    """The worst moment: the collector died between an upload and its note, and the engine read that value."""
    lanes = feed_lanes(bound(plan, "c"))
    spool.note_fed("c", [2, 0, 0])
    feed = bound(plan, "c")
    rest = {COLLECTOR: {"images": feed[COLLECTOR]["images"][3:], "audio": feed[COLLECTOR]["audio"]}, EDGE: feed[EDGE]}
    with feeding(plan, spool, store, "c", 1):
        read = FeedReader(store, rest).finish()
        assert len(read[COLLECTOR, "images"]) == 9
    assert not store.names() & {ref.blob for refs in lanes[0] for ref in refs}


def test_outages_and_a_full_store_are_waited_out_and_said_once(
    plan: FeedPlan, spool: Spool, store: WatchedStore, caplog: pytest.LogCaptureFixture
) -> None:
    store.failures += [ConnectionLost(target="the blob Redis", reason="gone"), BlobStoreFull(target="x", reason="maxmemory")]
    with feeding(plan, spool, store, "c", 1):
        check_read(FeedReader(store, bound(plan, "c")).finish())
    assert [record.levelname for record in caplog.records if "waiting for it" in record.message] == ["WARNING"]


def test_a_feeder_that_is_stopped_while_the_store_is_away_ends(plan: FeedPlan, spool: Spool, store: WatchedStore) -> None:
    store.failures += [ConnectionLost(target="the blob Redis", reason="gone")] * 1000
    with feeding(plan, spool, store, "c", 1) as stop:
        eventually(lambda: len(store.failures) < 1000)
        stop.set()


def test_feed_values_travel_as_json_beside_tensors(spool: Spool, store: WatchedStore) -> None:
    values = (1.5, True, None, ["a"])
    captures = [capture(store, "c", EDGE, "value", value, list_index=position) for position, value in enumerate(values)]
    spool.add(0, "c", ItemResult(captures=tuple(captures)), store)
    plan = plan_feed(job_record(1, last_stage=True, slots=(), edges=(EDGE,)), spool, store)
    assert bound(plan, "c")[EDGE]["value"] == tuple(LiteralValue(value) for value in values)
