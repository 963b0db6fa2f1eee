"""The collector on real servers: the table of truth and the blob store as in production, workers played by threads."""
from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from distributed_comfy import messages
from distributed_comfy.collector.assemble import joined_images
from distributed_comfy.collector.collect import Collector, CollectorOptions
from distributed_comfy.collector.spool import Spool, references
from distributed_comfy.collector.table import JobTable as TableProtocol
from distributed_comfy.messages import Capability, ItemKind, ItemResult, ItemSpec, JobRecord, Requirement
from distributed_comfy.settings import Settings
from distributed_comfy.state.connection import connect
from distributed_comfy.state.jobs import JobTable, Submission
from distributed_comfy.state.matching import Matching
from distributed_comfy.state.records import Claim, WorkerFacts
from distributed_comfy.state.scripts import Scripts
from distributed_comfy.state.workers import WorkerTable
from distributed_comfy.transport.feed_names import Feed, bind_feed
from distributed_comfy.transport.redis_blobs import RedisBlobStore
from tests.collected_jobs import COLLECTOR, JOB_ID, FeedReader, image, image_result, job_record, open_spool

pytestmark = pytest.mark.redis

ITEMS = 8
LARGE = (2, 256, 256, 3)
"""1.5 MB: with chunks of 64 KiB, several exchanges each."""


class World:
    """Both servers, seen by one process."""

    def __init__(self, redis_url: str, blob_url: str) -> None:
        self.settings = Settings(chunk_bytes=2**16, retry_backoff_s=0, lease_ttl_s=1.5, reaper_interval_s=0.1)
        self.client = connect(redis_url, "DC_REDIS_URL", decode_responses=True)
        self.blob_client = connect(blob_url, "DC_BLOB_URL")
        scripts = Scripts(self.client, "dc:", lambda names: None)
        matching = Matching(scripts, lambda requirement, capability: True)
        self.jobs = JobTable(scripts, matching, self.settings)
        self.workers = WorkerTable(scripts, matching, self.settings)
        self.blobs = RedisBlobStore(self.blob_client, prefix="dc:", chunk_bytes=2**16, ttl_s=600)

    def submit(self, job: JobRecord) -> None:
        kinds: list[ItemKind] = ["generate"] * (job.items - job.has_last_stage) + ["last"] * job.has_last_stage
        specs = [ItemSpec(index, kind, "p", (COLLECTOR,)) for index, kind in enumerate(kinds)]
        self.jobs.submit(Submission(job, specs, {"p": {}}, "sig", "sig" if job.has_last_stage else ""), "owner")

    def start_worker(self, name: str) -> str:
        """Register; gives the incarnation."""
        capability = Capability("builtin", "1", ())
        self.workers.register(WorkerFacts(name, "host", "cpu", "builtin"), f"{name}.1", "cap", capability)
        return f"{name}.1"

    def close(self) -> None:
        self.client.close()
        self.blob_client.close()


@pytest.fixture
def world(redis_url: str, blob_url: str) -> Iterator[World]:
    opened = World(redis_url, blob_url)
    yield opened
    opened.close()


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    with open_spool(tmp_path / "spool") as opened:
        yield opened


def work(world: World, name: str, run: Callable[[Claim], ItemResult], stop: threading.Event) -> None:
    """A worker: claims until it is told to stop."""
    incarnation = world.start_worker(name)
    number = 0
    while not stop.is_set():
        number += 1
        claim = world.workers.claim(name, incarnation, f"{name}-{number}")
        if claim is None:
            time.sleep(0.003)
            world.workers.renew(name, incarnation, [])
        else:
            world.workers.complete(name, incarnation, claim, run(claim))


def reap(world: World, stop: threading.Event) -> None:
    """The elected reaper."""
    while not stop.wait(0.1):
        world.workers.reap("reaper")


def test_the_redis_job_table_is_what_the_collector_asks_for(world: World) -> None:
    table: TableProtocol = world.jobs
    assert callable(table.wait_events)


def test_a_job_with_a_last_stage_a_dead_worker_and_lost_blobs_is_collected_exactly(world: World, spool: Spool) -> None:
    job = job_record(ITEMS, last_stage=True)
    requirement = Requirement("", ())
    job = messages.from_plain(JobRecord, {**messages.to_plain(job), "requirement": requirement, "last_requirement": requirement})
    fed: list[np.ndarray] = []
    spoiled: set[int] = set()

    def run(claim: Claim) -> ItemResult:
        if claim.index == ITEMS:
            feed = bind_feed(messages.load(Feed, world.jobs.feed(JOB_ID, claim.index)), claim.claim_id)
            fed.extend(FeedReader(world.blobs, feed).finish()[COLLECTOR, "images"])
            return ItemResult(worker="last")
        result = image_result(world.blobs, claim.claim_id, image(claim.index, LARGE))
        if claim.index in (2, 5) and claim.index not in spoiled:
            spoiled.add(claim.index)
            world.blobs.unlink([next(references(result)).blob])
        return result

    world.submit(job)
    dead = world.start_worker("dead")
    assert world.workers.claim("dead", dead, "dead-1") is not None
    stop = threading.Event()
    threads = [threading.Thread(target=work, args=(world, f"w{number}", run, stop), daemon=True) for number in range(2)]
    threads.append(threading.Thread(target=reap, args=(world, stop), daemon=True))
    for thread in threads:
        thread.start()
    arrived: list[int] = []
    options = CollectorOptions(on_item=lambda index, result: arrived.append(index), look_interval_s=0.2, window_bytes=LARGE[1] * 2**10)
    try:
        Collector(job, world.jobs, world.blobs, spool, options).run()
    finally:
        stop.set()
        for thread in threads:
            thread.join(timeout=10)
    expected = np.concatenate([image(index, LARGE) for index in range(ITEMS)]).tobytes()
    assert joined_images(spool, COLLECTOR).tobytes() == expected
    assert np.concatenate(fed).tobytes() == expected
    assert spoiled == {2, 5}
    assert sorted(arrived) == list(range(ITEMS + 1))
    assert list(world.blob_client.scan_iter("dc:blob:*")) == []
    assert world.jobs.job_state(JOB_ID).state == "done"
