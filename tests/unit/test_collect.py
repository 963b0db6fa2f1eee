"""The collector's loop against a table in memory: every fault of events, blobs and servers, and each way a job ends."""
from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distributed_comfy import messages
from distributed_comfy.collector.assemble import joined_images
from distributed_comfy.collector.collect import Collector, CollectorOptions
from distributed_comfy.collector.memory_table import MemoryJobTable
from distributed_comfy.collector.spool import Spool, references
from distributed_comfy.errors import (
    BlobsAway,
    BlobStoreFull,
    ConnectionLost,
    FrameVersionUnknown,
    ItemsMissing,
    JobCancelled,
    JobFailed,
    NodeFailed,
    OutputUnwritable,
    RedisRefused,
    RedisUnreachable,
    SizesDiffer,
)
from distributed_comfy.messages import ItemResult, JobRecord, TensorRef
from distributed_comfy.state.records import JobEvent
from distributed_comfy.transport.feed_names import Feed, bind_feed
from distributed_comfy.transport.memory_blobs import MemoryBlobStore
from tests.collected_jobs import COLLECTOR, EDGE, JOB_ID, FeedReader, capture, fill, image, image_result, job_record, open_spool

FAST = CollectorOptions(look_interval_s=0.1)


@dataclass
class Play:
    """A job on stage: the test plays the workers."""

    job: JobRecord
    table: MemoryJobTable
    store: MemoryBlobStore
    spool: Spool
    arrived: list[int] = field(default_factory=list)

    def complete(self, index: int, claim_id: str = "", result: ItemResult | None = None) -> ItemResult:
        """A worker claims and finishes an item."""
        claim_id = claim_id or f"c{index}"
        assert self.table.claim(index, claim_id)
        result = result or image_result(self.store, claim_id, image(index))
        assert self.table.complete(index, claim_id, result)
        return result

    def collector(self, options: CollectorOptions = FAST) -> Collector:
        def note(index: int, result: ItemResult) -> None:
            assert self.spool.result(index) == result
            self.arrived.append(index)

        return Collector(self.job, self.table, self.store, self.spool, replace(options, on_item=note))

    @contextmanager
    def collecting(self, options: CollectorOptions = FAST) -> Iterator[Running]:
        """Collect in a thread, which must end by itself once the block is left."""
        running = Running(self.collector(options).run)
        yield running
        running.finish()

    def check_images(self, items: int) -> None:
        expected = np.concatenate([image(index) for index in range(items)])
        assert joined_images(self.spool, COLLECTOR).tobytes() == expected.tobytes()

    def feed(self, claim_id: str) -> Feed:
        """What a worker of the last stage gets."""
        return bind_feed(messages.load(Feed, self.table.feed_json), claim_id)


class Running:
    """A call in a thread, whose error is raised by `finish`."""

    def __init__(self, call: Callable[[], None]) -> None:
        self._error: BaseException | None = None
        self._call = call
        # Not a pool: its threads are waited for at exit, and a collector that hangs would hang the whole test run.
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        try:
            self._call()
        except BaseException as error:  # noqa: BLE001 - raised again by `finish`
            self._error = error

    def finish(self) -> None:
        self.thread.join(timeout=20)
        assert not self.thread.is_alive(), "the collector does not end"
        error, self._error = self._error, None
        if error is not None:
            raise error


def eventually(reached: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 10
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def make_play(tmp_path: Path, items: int, **options: Any) -> Play:
    job = job_record(items, **options)
    table = MemoryJobTable(job.items, has_last_stage=job.has_last_stage)
    return Play(job, table, MemoryBlobStore(), open_spool(tmp_path / "spool"))


@pytest.fixture
def play(tmp_path: Path) -> Play:
    """Four items, no last stage."""
    return make_play(tmp_path, 4)


@pytest.fixture
def staged(tmp_path: Path) -> Play:
    """Three items and a last stage that takes their images and an edge."""
    return make_play(tmp_path, 3, last_stage=True, edges=(EDGE,))


def complete_stage_items(play: Play) -> None:
    """The three generated items, the first one with the edge."""
    result = image_result(play.store, "c0", image(0))
    edge = capture(play.store, "c0", EDGE, "value", {"samples": image(50, (1, 4, 2, 2))})
    play.complete(0, result=replace(result, captures=(*result.captures, edge)))
    for index in (1, 2):
        play.complete(index)


def left_in(store: MemoryBlobStore) -> list[str]:
    return list(store._blobs)


def test_results_are_fetched_unlinked_and_marked_while_the_job_runs(play: Play) -> None:
    with play.collecting():
        for index in (2, 0):
            play.complete(index)
            eventually(partial(play.table.fetched, index))
            assert left_in(play.store) == []
        for index in (3, 1):
            play.complete(index)
    play.check_images(4)
    assert play.arrived[:2] == [2, 0]
    assert sorted(play.arrived) == [0, 1, 2, 3]


def test_what_was_done_before_the_collector_started_is_collected(play: Play) -> None:
    for index in range(4):
        play.complete(index)
    play.collector().run()
    play.check_images(4)


def put_by_this_process(play: Play, index: int) -> None:
    """As a master that takes part does: the result never sees the blob store."""
    store, claim_id = MemoryBlobStore(), f"own{index}"
    result = image_result(store, claim_id, image(index))
    assert play.table.claim(index, claim_id)
    assert play.spool.add(index, claim_id, result, store)
    assert play.table.complete(index, claim_id, result)


@pytest.mark.parametrize("events", [True, False])
def test_what_this_process_put_into_the_spool_itself_is_told_like_all_else(
    play: Play, monkeypatch: pytest.MonkeyPatch, events: bool
) -> None:
    if not events:
        monkeypatch.setattr(play.table, "wait_events", lambda job_id, cursor, block_s: (time.sleep(min(block_s, 0.02)), ("0", []))[1])
    with play.collecting():
        put_by_this_process(play, 1)
        play.complete(0)
        eventually(lambda: len(play.arrived) == 2)
        for index in (2, 3):
            put_by_this_process(play, index)
    assert sorted(play.arrived) == [0, 1, 2, 3]
    assert all(play.table.fetched(index) for index in range(4))
    play.check_images(4)


def test_an_item_arrives_long_before_the_next_look(play: Play) -> None:
    for index in range(3):
        play.complete(index)
    begun = time.monotonic()
    with play.collecting(replace(FAST, look_interval_s=60)):
        eventually(lambda: len(play.arrived) == 3)
        play.complete(3)
        eventually(lambda: len(play.arrived) == 4)
    assert time.monotonic() - begun < 0.9, "it waited for something else than an event"


def test_without_any_event_everything_is_found_in_the_table(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(job_id: str, cursor: str, block_s: float) -> tuple[str, list[JobEvent]]:
        time.sleep(block_s / 20)
        return "0", []

    monkeypatch.setattr(play.table, "wait_events", nothing)
    with play.collecting():
        for index in range(4):
            play.complete(index)
    play.check_images(4)


def test_false_late_and_doubled_events_do_no_harm(play: Play) -> None:
    with play.collecting():
        for index in range(4):
            play.table.announce([JobEvent("done", index, "nobody"), JobEvent("done", 99, "x")])
            play.table.announce([JobEvent("failed", -1), JobEvent("claimed", 3, "y")])
            play.complete(index)
            play.table.announce([JobEvent("done", index, f"c{index}")] * 3)
    play.check_images(4)
    assert sorted(play.arrived) == [0, 1, 2, 3]


def test_a_blob_that_is_gone_runs_the_item_again(play: Play) -> None:
    result = image_result(play.store, "c1", image(1))
    play.store.unlink(ref.blob for ref in references(result))
    with play.collecting():
        play.complete(1, result=result)
        eventually(lambda: play.table.item_states(JOB_ID)[1].state == "pending")
        for index in range(4):
            play.complete(index, f"again{index}")
    play.check_images(4)
    assert play.spool.claim_id(1) == "again1"


def test_a_damaged_blob_of_a_job_that_is_done_runs_the_item_again(play: Play) -> None:
    for index in range(3):
        play.complete(index)
    result = image_result(play.store, "c3", image(3))
    value = result.captures[0].value
    assert isinstance(value, TensorRef)
    frame = bytearray(play.store.get(value.blob))
    frame[-1] ^= 1
    play.store.put(value.blob.rpartition("#")[0], [bytes(frame)])
    play.complete(3, result=result)
    assert play.table.job_state(JOB_ID).state == "done"
    with play.collecting():
        eventually(lambda: play.table.item_states(JOB_ID)[3].state == "pending")
        play.complete(3, "again")
    play.check_images(4)


def test_a_result_that_is_damaged_each_time_fails_the_job_in_the_end(play: Play) -> None:
    def ruin(attempt: int) -> None:
        result = image_result(play.store, f"bad{attempt}", image(0))
        play.store.unlink(ref.blob for ref in references(result))
        play.complete(0, f"bad{attempt}", result)

    with pytest.raises(JobFailed) as caught, play.collecting():
        for attempt in range(3):
            ruin(attempt)
            eventually(lambda: play.table.item_states(JOB_ID)[0].state in ("pending", "failed"))
    assert caught.value.index == 0


def test_a_frame_of_another_version_ends_the_collection(play: Play) -> None:
    result = image_result(play.store, "c0", image(0))
    value = result.captures[0].value
    assert isinstance(value, TensorRef)
    frame = bytearray(play.store.get(value.blob))
    frame[4] = 9
    play.store.put(value.blob.rpartition("#")[0], [bytes(frame)])
    play.complete(0, result=result)
    with pytest.raises(FrameVersionUnknown):
        play.collector().run()


def test_a_failed_item_is_reported_after_every_finished_one_is_home(play: Play) -> None:
    error = NodeFailed(node_id="5", class_type="KSampler", exception_type="ValueError", exception_message="no").to_wire()
    for index in (0, 2):
        play.complete(index)
    play.table.claim(3, "c3", "pc2-cuda0")
    play.table.fail(3, "c3", error)
    with pytest.raises(JobFailed) as caught:
        play.collector().run()
    assert sorted(play.arrived) == [0, 2]
    assert (caught.value.index, caught.value.worker, caught.value.error) == (3, "pc2-cuda0", error)
    assert "node 5 (KSampler) raised ValueError: no" in str(caught.value)


def test_a_cancelled_job_keeps_what_is_finished_even_if_a_blob_is_gone(play: Play) -> None:
    play.complete(0)
    play.store.unlink(ref.blob for ref in references(play.complete(1)))
    play.table.end("cancelled", reason="by someone")
    with pytest.raises(JobCancelled) as caught:
        play.collector().run()
    assert "by someone" in str(caught.value)
    assert play.arrived == [0]


def test_a_cancel_while_items_run_ends_the_collection(play: Play) -> None:
    with pytest.raises(JobCancelled), play.collecting(replace(FAST, look_interval_s=60)):
        play.complete(0)
        play.table.claim(1, "c1")
        eventually(lambda: play.arrived)
        play.table.end("cancelled")


def test_items_that_nobody_can_account_for_are_listed(play: Play) -> None:
    for index in (0, 3):
        play.complete(index)
    play.table.end("done")
    with pytest.raises(ItemsMissing) as caught:
        play.collector().run()
    assert caught.value.indexes == [1, 2]


def test_different_sizes_are_reported_as_soon_as_two_items_are_here(play: Play) -> None:
    with pytest.raises(SizesDiffer) as caught, play.collecting():
        play.complete(0)
        play.complete(2, result=image_result(play.store, "c2", image(2, (1, 4, 4, 3))))
    assert (caught.value.first, caught.value.index) == (0, 2)
    assert sorted(play.arrived) == [0, 2], "both are saved before the error"


def test_a_full_disk_ends_the_collection_and_leaves_the_result_in_the_store(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any) -> bool:
        raise OutputUnwritable(path="/x", reason="the disk is full")

    result = play.complete(0)
    monkeypatch.setattr(play.spool, "add", full)
    with pytest.raises(OutputUnwritable):
        play.collector().run()
    assert all(play.store.exists([ref.blob for ref in references(result)]))
    assert not play.table.fetched(0)


class Flaky:
    """Lets every method of an object fail now and then."""

    def __init__(self, target: Any, error: Exception, every: int) -> None:
        self._target, self._error, self._every = target, error, every
        self._calls = 0
        self.failing = True

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._target, name)

        def call(*arguments: Any, **options: Any) -> Any:
            self._calls += 1
            if self.failing and self._calls % self._every == 0:
                raise self._error
            return method(*arguments, **options)

        return call if callable(method) and name != "offered" else method  # an offer asks no server


def test_outages_of_both_servers_are_waited_out(play: Play, caplog: pytest.LogCaptureFixture) -> None:
    table: Any = Flaky(play.table, RedisUnreachable(url="redis://x", reason="refused", setting="DC_REDIS_URL"), 2)
    store: Any = Flaky(play.store, ConnectionLost(target="the blob Redis", reason="reset"), 2)
    running = Running(Collector(play.job, table, store, play.spool, FAST).run)
    for index in range(4):
        play.complete(index)
    running.finish()
    play.check_images(4)


def test_an_outage_is_logged_once(play: Play, caplog: pytest.LogCaptureFixture) -> None:
    table: Any = Flaky(play.table, RedisUnreachable(url="redis://x", reason="refused", setting="DC_REDIS_URL"), 1)
    running = Running(Collector(play.job, table, play.store, play.spool, FAST).run)
    time.sleep(0.5)
    table.failing = False
    for index in range(4):
        play.complete(index)
    running.finish()
    assert [record.levelname for record in caplog.records if "cannot reach Redis" in record.message] == ["WARNING"]


@pytest.mark.parametrize("idle", [False, True], ids=["while results wait there", "while nothing is done"])
def test_a_blob_store_that_stays_away_is_not_waited_for_without_limit(play: Play, idle: bool) -> None:
    if not idle:
        play.complete(0)
    store: Any = Flaky(play.store, ConnectionLost(target="the blob Redis", reason="refused"), 1)
    options = replace(FAST, blob_away_s=0.7, inputs_interval_s=0.05)
    began = time.monotonic()
    with pytest.raises(BlobsAway, match=r"has not answered for 1 s \(the blob Redis: refused\), .*DC_BLOB_AWAY_S"):
        Collector(play.job, play.table, store, play.spool, options).run()
    assert 0.6 < time.monotonic() - began < 10


@pytest.mark.parametrize(
    ("error", "every"), [(ConnectionLost(target="the blob Redis", reason="reset"), 3), (BlobStoreFull(target="it", reason="OOM"), 1)],
    ids=["answers now and then", "is full"],
)  # fmt: skip
def test_a_blob_store_that_answers_now_and_then_or_is_full_is_not_away(play: Play, error: Exception, every: int) -> None:
    store: Any = Flaky(play.store, error, every)
    running = Running(Collector(play.job, play.table, store, play.spool, replace(FAST, blob_away_s=0.2, inputs_interval_s=0.05)).run)
    time.sleep(0.8)
    store.failing = False
    for index in range(4):
        play.complete(index)
    running.finish()
    play.check_images(4)


def test_a_wrong_password_is_not_waited_out(play: Play) -> None:
    table: Any = Flaky(play.table, RedisRefused(url="redis://x", reason="WRONGPASS", setting="DC_REDIS_URL"), 3)
    with pytest.raises(RedisRefused):
        Collector(play.job, table, play.store, play.spool, FAST).run()


def test_a_collector_that_starts_again_fetches_only_what_is_not_spooled_and_unlinks_the_rest(play: Play) -> None:
    results = [play.complete(index) for index in range(4)]
    for index in (0, 2):  # the one before spooled these, and died before it unlinked anything
        play.spool.add(index, f"c{index}", results[index], play.store)
    play.collector().run()
    play.check_images(4)
    assert left_in(play.store) == []
    assert all(play.table.fetched(index) for index in range(4))
    assert play.arrived[:2] == [0, 2]


def test_a_reopened_item_that_came_again_replaces_the_spooled_one(play: Play) -> None:
    play.spool.add(0, "old", image_result(play.store, "old", image(77)), play.store)
    for index in range(4):
        play.complete(index)
    play.collector().run()
    play.check_images(4)


def test_input_files_are_looked_after_all_the_time(play: Play) -> None:
    calls: list[float] = []
    options = replace(FAST, ensure_inputs=lambda: calls.append(time.monotonic()), inputs_interval_s=0.05)
    with play.collecting(options):
        eventually(lambda: len(calls) > 3)
        for index in range(4):
            play.complete(index)


def test_an_error_of_the_input_files_ends_the_collection(play: Play) -> None:
    def missing() -> None:
        raise OutputUnwritable(path="x", reason="y")

    with pytest.raises(OutputUnwritable):
        play.collector(replace(FAST, ensure_inputs=missing)).run()


@pytest.mark.parametrize("away", [False, True])
def test_a_collector_that_is_stopped_ends_whether_or_not_the_servers_answer(play: Play, away: bool) -> None:
    table: Any = Flaky(play.table, RedisUnreachable(url="redis://x", reason="refused", setting="DC_REDIS_URL"), 1)
    table.failing = False
    collector = Collector(play.job, table, play.store, play.spool, FAST)
    with pytest.raises(CancelledError):
        running = Running(collector.run)
        play.complete(0)
        eventually(lambda: play.spool.has(0))
        table.failing = away
        collector.stop()
        running.finish()
    assert play.spool.items() == [0]


def test_many_items_are_collected_with_few_threads(tmp_path: Path) -> None:
    play = make_play(tmp_path, 300)
    before = threading.active_count()
    for index in range(300):
        play.complete(index, result=ItemResult(blocked=(COLLECTOR,)))
    with play.collecting() as running:
        most = 0
        while running.thread.is_alive():
            most = max(most, threading.active_count())
            time.sleep(0.005)
    assert sorted(play.arrived) == list(range(300))
    assert most - before <= FAST.fetch_threads + 2 + 1
    assert threading.active_count() == before


# -- the last stage
def test_the_last_stage_is_unblocked_when_all_are_here_and_fed_for_its_claim(staged: Play) -> None:
    with staged.collecting():
        complete_stage_items(staged)
        eventually(lambda: staged.table.claim(3, "last"))
        read = FeedReader(staged.store, staged.feed("last")).finish()
        staged.table.complete(3, "last", ItemResult())
    assert np.concatenate(read[COLLECTOR, "images"]).tobytes() == np.concatenate([image(index) for index in range(3)]).tobytes()
    assert np.array_equal(read[EDGE, "value"][0]["samples"], image(50, (1, 4, 2, 2)))
    assert sorted(staged.arrived) == [0, 1, 2, 3]
    assert left_in(staged.store) == []


def test_the_last_stage_stays_blocked_until_the_last_item_is_spooled(staged: Play) -> None:
    with staged.collecting():
        for index in (0, 1):
            staged.complete(index)
        eventually(lambda: len(staged.arrived) == 2)
        time.sleep(0.3)
        assert staged.table.item_states(JOB_ID)[3].state == "blocked"
        staged.complete(2)
        eventually(lambda: staged.table.claim(3, "last"))
        staged.table.complete(3, "last", ItemResult())


def test_when_the_worker_of_the_last_stage_dies_the_next_one_is_fed(staged: Play) -> None:
    options = replace(FAST, window_bytes=1)
    with staged.collecting(options):
        complete_stage_items(staged)
        eventually(lambda: staged.table.claim(3, "dead"))
        eventually(lambda: left_in(staged.store))
        staged.table.lose_worker(3)
        assert staged.table.claim(3, "alive")
        read = FeedReader(staged.store, staged.feed("alive")).finish()
        staged.table.complete(3, "alive", ItemResult())
    assert len(read[COLLECTOR, "images"]) == 3
    assert left_in(staged.store) == [], "nothing of the dead claim is left"


def test_a_claim_whose_event_is_lost_is_fed_at_the_next_look(staged: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    with staged.collecting():
        complete_stage_items(staged)
        eventually(lambda: staged.table.feed_json)
        monkeypatch.setattr(staged.table, "announce", lambda events: None)
        assert staged.table.claim(3, "last")
        FeedReader(staged.store, staged.feed("last")).finish()
        staged.table.complete(3, "last", ItemResult())


def test_a_false_claim_event_feeds_nobody(staged: Play) -> None:
    with staged.collecting():
        complete_stage_items(staged)
        eventually(lambda: staged.table.feed_json)
        staged.table.announce([JobEvent("claimed", 3, "ghost")] * 3)
        time.sleep(0.3)
        assert left_in(staged.store) == []
        staged.table.claim(3, "last")
        staged.table.complete(3, "last", ItemResult())


def test_a_collector_that_starts_again_feeds_the_running_last_stage(staged: Play) -> None:
    complete_stage_items(staged)
    first = Running(staged.collector().run)
    eventually(lambda: staged.table.feed_json)
    stored = staged.table.feed_json
    staged.table.end("cancelled")  # ends the first collector only: the next line takes it back
    with pytest.raises(JobCancelled):
        first.finish()
    staged.table._job = replace(staged.table._job, state="running")
    assert staged.table.claim(3, "last")
    staged.arrived.clear()
    with staged.collecting():
        read = FeedReader(staged.store, staged.feed("last")).finish()
        staged.table.complete(3, "last", ItemResult())
    assert len(read[COLLECTOR, "images"]) == 3
    assert staged.table.feed_json == stored


def test_a_failed_last_stage_is_reported_and_leaves_no_feed(staged: Play) -> None:
    with pytest.raises(JobFailed) as caught, staged.collecting():
        complete_stage_items(staged)
        eventually(lambda: staged.table.claim(3, "last"))
        eventually(lambda: left_in(staged.store))
        staged.table.fail(3, "last", {"code": "sink_did_not_run", "fields": {"node_id": "9"}})
    assert caught.value.index == 3
    assert left_in(staged.store) == []


def test_a_one_item_job_without_collector_is_collected_like_any_other(tmp_path: Path) -> None:
    play = make_play(tmp_path, 1)
    play.complete(0, result=ItemResult(outputs={"7": {"images": []}}))
    play.collector().run()
    assert play.spool.result(0).outputs == {"7": {"images": []}}


def test_filling_the_spool_twice_is_the_same(play: Play) -> None:
    fill(play.spool, play.store, 4)
    fill(play.spool, play.store, 4)
    play.check_images(4)
