"""The collector's loop with an upscale: from the image to the last stage, and each way in which that ends early."""
from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distributed_comfy import messages
from distributed_comfy.collector.collect import Collector, CollectorOptions
from distributed_comfy.errors import JobCancelled, JobFailed, UpscaleImageUnusable
from distributed_comfy.messages import ItemResult, JobRecord
from distributed_comfy.transport.feed_names import Feed, bind_feed
from tests.collected_jobs import JOB_ID, FeedReader, capture
from tests.tile_jobs import IMAGE_EDGE, UPSCALE, Studio, expected, picture, refined, tile_job
from tests.unit.test_collect import Running, eventually

LAST = 1
FIRST_TILE = 2


class Cluster(Studio):
    """A job that a real collector collects; the test plays the workers."""

    def __init__(self, folder: Path, job: JobRecord | None = None) -> None:
        super().__init__(job or tile_job(mode="chess"), folder)
        self.arrived: list[int] = []

    @contextmanager
    def collecting(self, *, to_the_end: bool = True) -> Iterator[Collector]:
        """A collector in a thread; it must end by itself, or is stopped."""
        options = CollectorOptions(
            look_interval_s=0.05, inputs_interval_s=0.05, on_item=lambda index, result: self.arrived.append(index),
            tiles=replace(CollectorOptions().tiles, workers=lambda: self.workers),
        )  # fmt: skip
        collector = Collector(self.job, self.table, self.store, self.spool, options)
        running = Running(collector.run)
        yield collector
        if to_the_end:
            running.finish()
            return
        collector.stop()
        with pytest.raises(CancelledError):
            running.finish()

    def make_image(self) -> None:
        """Item 0."""
        assert self.table.claim(0, "c0")
        result = ItemResult(captures=(capture(self.store, "c0", IMAGE_EDGE, "value", picture()),))
        assert self.table.complete(0, "c0", result)

    def next_tile(self) -> int:
        """A tile that may be drawn, as soon as there is one."""
        found: list[int] = []
        eventually(lambda: found.extend(self._waiting()) or found)
        return found[0]

    def _waiting(self) -> list[int]:
        states = self.table.item_states(JOB_ID)
        return [index for index, item in states.items() if index >= FIRST_TILE and item.state == "pending"]

    def draw_all(self, change: Callable[[Any], Any] = refined) -> None:
        """Every tile that is left, until the last stage may run."""
        while self.table.item_states(JOB_ID)[LAST].state == "blocked":
            for index in self._waiting():
                self.draw(index, change)
            time.sleep(0.002)

    def finish_stage(self) -> np.ndarray[Any, Any]:
        """The last stage; the frames that it was fed."""
        assert self.table.claim(LAST, "end")
        feed = bind_feed(messages.load(Feed, self.table.feeds[LAST]), "end")
        read = FeedReader(self.store, feed).finish()
        assert self.table.complete(LAST, "end", ItemResult())
        return np.concatenate(read[UPSCALE, "images"])

    def reopen_spool(self) -> None:
        """Another collector follows."""
        self.spool.close()
        self.spool = type(self.spool)(self.folder, self.spool.manifest)


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    return Cluster(tmp_path / "spool")


def check(cluster: Cluster, frames: Any) -> None:
    assert frames.tobytes() == expected(cluster.job, picture()).tobytes()
    assert not cluster.store._blobs


def test_image_tiles_and_last_stage_follow_each_other(cluster: Cluster) -> None:
    with cluster.collecting():
        cluster.make_image()
        cluster.draw_all()
        check(cluster, cluster.finish_stage())
    assert sorted(cluster.arrived) == list(range(8)) and cluster.table.job_state(JOB_ID).state == "done"


@pytest.mark.parametrize("drawn", [0, 1, 3, 6])
def test_a_collector_that_dies_is_followed_by_one_that_goes_on(cluster: Cluster, drawn: int) -> None:
    with cluster.collecting(to_the_end=False):
        cluster.make_image()
        for _ in range(drawn):
            cluster.draw(cluster.next_tile())
        eventually(lambda: cluster.spool.has(0))
    cluster.reopen_spool()
    with cluster.collecting():
        cluster.draw_all()
        check(cluster, cluster.finish_stage())
    assert cluster.claims == 6, "no tile ran twice"


def test_a_blob_store_that_starts_empty_in_mid_upscale_costs_no_byte(cluster: Cluster) -> None:
    """Results that were not fetched run again; crops are put back for those that wait for them."""
    with cluster.collecting():
        cluster.make_image()
        assert cluster.table.claim(cluster.next_tile(), "slow")
        cluster.store._blobs.clear()
        eventually(lambda: any(":crop:" in blob for blob in list(cluster.store._blobs)))
        cluster.table.lose_worker(FIRST_TILE)
        get = cluster.store.chunks

        def gone(blob: str) -> Any:
            cluster.store.chunks = get  # type: ignore[method-assign]
            cluster.store.unlink([blob])
            return get(blob)

        cluster.store.chunks = gone  # type: ignore[method-assign]
        cluster.draw_all()
        check(cluster, cluster.finish_stage())
    assert cluster.claims == 7, "the one whose result was lost ran again"


def test_a_table_that_lost_its_last_second_is_told_again(cluster: Cluster) -> None:
    with cluster.collecting():
        cluster.make_image()
        cluster.table.forget(cluster.next_tile())
        cluster.draw_all()
        check(cluster, cluster.finish_stage())


def forget_first_tile(cluster: Cluster) -> None:
    """The table loses that the first tile is done; its crop went when it was fetched."""
    index = FIRST_TILE
    eventually(lambda: cluster.table.fetched(index) and not [blob for blob in cluster.store._blobs if ":crop:0." in blob])
    cluster.table.roll_back(index)


@pytest.mark.parametrize("claimed", [False, True])
def test_a_tile_that_the_table_forgot_to_be_done_is_done_again_without_a_worker(cluster: Cluster, claimed: bool) -> None:
    with cluster.collecting():
        cluster.make_image()
        cluster.draw(cluster.next_tile())
        forget_first_tile(cluster)
        if claimed:
            cluster.table.claim(FIRST_TILE, "in vain")
        eventually(lambda: cluster.table.item_states(JOB_ID)[FIRST_TILE].state == "done")
        cluster.draw_all()
        check(cluster, cluster.finish_stage())
    assert cluster.claims == 6, "no tile ran twice"


def test_a_new_collector_tells_the_table_what_it_forgot(cluster: Cluster) -> None:
    with cluster.collecting(to_the_end=False):
        cluster.make_image()
        cluster.draw(cluster.next_tile())
        eventually(lambda: cluster.table.fetched(FIRST_TILE))
    forget_first_tile(cluster)
    cluster.table.roll_back(0)
    cluster.reopen_spool()
    with cluster.collecting():
        eventually(lambda: cluster.table.item_states(JOB_ID)[0].state == "done")
        cluster.draw_all()
        check(cluster, cluster.finish_stage())
    assert cluster.claims == 6, "no tile ran twice"


def test_a_cancel_in_mid_upscale_ends_it(cluster: Cluster) -> None:
    with pytest.raises(JobCancelled, match="enough"), cluster.collecting():
        cluster.make_image()
        cluster.draw(cluster.next_tile())
        cluster.next_tile()
        cluster.table.end("cancelled", reason="enough")


def test_a_cancel_before_the_tiles_are_entered_ends_it(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    extend = cluster.table.extend

    def too_late(*arguments: Any, **options: Any) -> bool:
        cluster.table.end("cancelled", reason="enough")
        answer = extend(*arguments, **options)
        assert not answer
        return answer

    monkeypatch.setattr(cluster.table, "extend", too_late)
    with pytest.raises(JobCancelled, match="enough"), cluster.collecting():
        cluster.make_image()


def test_a_tile_that_fails_for_good_fails_the_job(cluster: Cluster) -> None:
    with pytest.raises(JobFailed) as caught, cluster.collecting():
        cluster.make_image()
        index = cluster.next_tile()
        assert cluster.table.claim(index, "bad")
        cluster.table.fail(index, "bad", {"code": "engine_died", "fields": {}})
    assert caught.value.index == FIRST_TILE


def test_a_model_that_changes_the_size_ends_the_run_with_the_node(cluster: Cluster) -> None:
    with pytest.raises(UpscaleImageUnusable, match="keep the size of the image"), cluster.collecting():
        cluster.make_image()
        cluster.draw(cluster.next_tile(), lambda crop: crop[:, :-8])


def test_a_job_that_fails_without_its_image_ends_although_tiles_of_it_are_here(cluster: Cluster) -> None:
    """A resumed job whose image was damaged on the disk, and which cannot be made again."""
    cluster.give_image(picture())
    cluster.begin()
    for _ in range(4):
        index = cluster.pending()[0]
        cluster.draw(index)
        cluster.fetch(index)
        cluster.work.take(index)
        cluster.work.go_on()
    cluster.spool.discard(0)
    fresh = Cluster(cluster.folder.with_name("other"))
    fresh.spool.close()
    fresh.spool = cluster.spool
    assert fresh.table.claim(0, "bad")
    fresh.table.fail(0, "bad", {"code": "engine_died", "fields": {}})
    with pytest.raises(JobFailed), fresh.collecting():
        pass
