"""The figures behind the metrics: what the table says now, and tallies that count every transition once."""
from __future__ import annotations

import math
from dataclasses import replace

import pytest
import redis

from distributed_comfy.errors import EngineDied, WorkerLacks
from distributed_comfy.state.figures import ITEM_STATES, KINDS, Figures, read_figures
from distributed_comfy.state.records import DeviceMemory
from distributed_comfy.state.tallies import Histogram
from tests.integration.state.conftest import OpenCluster
from tests.state_cluster import OWNER, Cluster, Job, submission

DIED = EngineDied(status="signal 9", log_tail="")
GIB = 2**30


def figures(cluster: Cluster) -> Figures:
    return read_figures(cluster.scripts)


def items(cluster: Cluster, kind: str) -> dict[str, int]:
    """State -> items of a kind, those that are none left out."""
    return {state: count for (its_kind, state), count in figures(cluster).items.items() if its_kind == kind and count}


def count(histogram: Histogram) -> int:
    return histogram.buckets[-1][1]


def test_an_empty_table_has_every_series_at_nought(cluster: Cluster) -> None:
    found = figures(cluster)
    assert set(found.items) == {(kind, state) for kind in KINDS for state in ITEM_STATES}
    assert not any(found.items.values()) and not any(found.jobs.values()) and not any(found.held_back.values())
    assert found.ended_jobs == {"done": 0, "failed": 0, "cancelled": 0}
    assert [count(found.waits[kind]) for kind in KINDS] == [0] * len(KINDS)
    assert (found.in_flight_bytes, found.in_flight_limit_bytes, found.job_limit_bytes) == (0, 4 * GIB, None)


def test_items_are_counted_by_state_and_kind(new_cluster: OpenCluster) -> None:
    cluster = new_cluster(retry_backoff_s=1000)
    cluster.join("v", "w")
    cluster.submit("a", items=5, last_needs=("Sampler",))
    assert items(cluster, "generate") == {"pending": 5} and items(cluster, "last") == {"blocked": 1}
    for _ in range(2):  # the first retry is immediate, the second one waits
        claim = cluster.take("v")
        cluster.give_back("v", claim, "retry", DIED)
    cluster.work("w")
    cluster.take("w")
    assert items(cluster, "generate") == {"pending": 2, "waiting": 1, "running": 1, "done": 1}
    cluster.jobs.unblock("a", [(5, "{}")])
    assert items(cluster, "last") == {"pending": 1}
    cluster.take("v")
    assert items(cluster, "last") == {"running": 1} and items(cluster, "generate")["pending"] == 2


def test_tiles_and_what_prepares_for_them_are_kinds_of_their_own(new_cluster: OpenCluster) -> None:
    cluster = new_cluster(retry_backoff_s=1000)
    cluster.join("v", "w")
    cluster.submit("a", items=1, prepare=True, grows=True, last_needs=("Sampler",))
    assert items(cluster, "prepare") == items(cluster, "last") == {"blocked": 1} and items(cluster, "generate") == {"pending": 1}
    cluster.work("v")
    cluster.unblock("a", 1)
    assert items(cluster, "prepare") == {"pending": 1}
    cluster.work("v")
    cluster.extend("a", 3, 9, finished=(5, 6))
    assert items(cluster, "tile") == {"blocked": 7, "done": 2}
    cluster.unblock("a", 3, 4, 7, 8)
    for _ in range(2):
        cluster.give_back("v", cluster.take("v"), "retry", DIED)
    cluster.work("w")
    cluster.take("w")
    assert items(cluster, "tile") == {"blocked": 3, "waiting": 1, "pending": 1, "running": 1, "done": 3}
    assert items(cluster, "generate") == items(cluster, "prepare") == {"done": 1}
    found = figures(cluster)
    assert [count(found.waits[kind]) for kind in ("generate", "prepare", "tile")] == [1, 1, 4]
    assert [count(found.runs[kind]) for kind in ("generate", "prepare", "tile")] == [1, 1, 1]


def test_a_prompt_without_seeds_is_of_a_kind_of_its_own(cluster: Cluster) -> None:
    cluster.join("w")
    whole = submission("a", Job())
    cluster.jobs.submit(replace(whole, specs=[replace(spec, kind="whole") for spec in whole.specs]), OWNER)
    assert items(cluster, "whole") == {"pending": 1} and items(cluster, "generate") == {}
    cluster.work("w")
    found = figures(cluster)
    assert count(found.waits["whole"]) == count(found.runs["whole"]) == 1 and count(found.runs["generate"]) == 0


def test_jobs_are_counted_as_the_listing_shows_them(cluster: Cluster) -> None:
    cluster.join("w")
    for name in ("a", "b", "c", "d"):
        cluster.submit(name, submitter=name)
    cluster.take("w")
    cluster.jobs.pause("b")
    cluster.disown("c")
    cluster.reap()
    assert figures(cluster).jobs == {"running": 1, "paused": 1, "parked": 1, "pending": 1}
    cluster.jobs.cancel("d", "enough")
    assert figures(cluster).jobs["pending"] == 0 and figures(cluster).ended_jobs == {"done": 0, "failed": 0, "cancelled": 1}


def test_the_wait_is_taken_from_the_moment_an_item_can_run(cluster: Cluster) -> None:
    cluster.join("w")
    cluster.submit("a", items=2, last_needs=("Sampler",))
    cluster.client.hincrby(cluster.key("job", "a"), "created_ms", -70_000)
    claim = cluster.take("w")
    first = figures(cluster).waits["generate"]
    assert 70 <= first.sum_s < 80 and next(bound for bound, below in first.buckets if below) == 120
    cluster.give_back("w", claim)
    cluster.take("w")
    again = figures(cluster).waits["generate"]
    assert count(again) == 2 and again.sum_s - first.sum_s < 10, "it came back a moment ago"
    cluster.jobs.unblock("a", [(2, "{}")])
    cluster.join("v")
    cluster.take("v")
    last = figures(cluster).waits["last"]
    assert count(last) == 1 and last.sum_s < 10


def test_the_engine_time_of_done_items_goes_into_one_bucket_and_to_its_worker(cluster: Cluster) -> None:
    cluster.join("w")
    cluster.submit("a", items=2)
    cluster.work("w")
    claim = cluster.take("w")
    assert cluster.complete("w", claim) and cluster.complete("w", claim)
    runs = figures(cluster).runs["generate"]
    assert runs.sum_s == pytest.approx(0.2) and count(runs) == 2
    assert [(bound, below) for bound, below in runs.buckets if bound in (0.05, 0.1, math.inf)] == [(0.05, 0), (0.1, 2), (math.inf, 2)]
    (worker,) = cluster.workers.workers()
    assert worker.engine_s == pytest.approx(0.2)


def test_retries_and_failures_are_counted_by_cause(new_cluster: OpenCluster) -> None:
    cluster = new_cluster(max_attempts=2)
    cluster.join("u", "v", "w")
    cluster.submit("a", items=4)
    cluster.give_back("u", cluster.take("u"))
    cluster.give_back("u", cluster.take("u"), "lacks", WorkerLacks(worker="u", lacks="x"))
    claim = cluster.take("v")
    cluster.complete("v", claim)
    cluster.jobs.reopen("a", claim.index, claim.claim_id)
    cluster.take("w")
    cluster.expire("w")
    cluster.reap()
    assert figures(cluster).retries == {"released": 1, "worker_lacks": 1, "blob_missing": 1, "worker_lost": 1}
    assert figures(cluster).lost_workers == 1
    cluster.jobs.cancel("a", "enough")
    cluster.submit("b")
    for _ in range(2):
        cluster.give_back("v", cluster.take("v"), "retry", DIED)
    cluster.submit("c")
    cluster.give_back("v", cluster.take("v"), "final")
    found = figures(cluster)
    assert found.failures == {"engine_died": 1, "node_failed": 1} and found.retries["engine_died"] == 1
    assert found.ended_jobs == {"done": 0, "failed": 2, "cancelled": 1}


def test_a_worker_that_leaves_is_not_a_lost_one(cluster: Cluster) -> None:
    cluster.join("w")
    cluster.workers.leave("w", cluster.incarnations["w"])
    cluster.reap()
    assert figures(cluster).lost_workers == 0
    cluster.join("w")
    cluster.expire("w")
    cluster.join("w", incarnation="second")
    assert figures(cluster).lost_workers == 1, "its name came back before anybody noticed"


def test_bytes_and_what_they_hold_back(new_cluster: OpenCluster) -> None:
    cluster = new_cluster(job_bytes_in_flight=2 * GIB)
    cluster.jobs.set_byte_limit(8 * GIB)
    cluster.join("v", "w")
    cluster.submit("a", items=6)
    assert figures(cluster).held_back == {"job": 0, "all_jobs": 0, "first_result": 2}
    cluster.work("v", GIB)
    cluster.take("w")
    found = figures(cluster)
    assert (found.unfetched_bytes, found.in_flight_bytes) == (GIB, 2 * GIB)
    assert (found.in_flight_limit_bytes, found.job_limit_bytes) == (8 * GIB, 2 * GIB)
    assert found.held_back == {"job": 4, "all_jobs": 0, "first_result": 0}


def test_device_memory_is_shown_as_long_as_its_worker_lives(cluster: Cluster) -> None:
    cluster.join("v", "w")
    cluster.workers.renew("w", cluster.incarnations["w"], (), DeviceMemory(3 * GIB, 8 * GIB))
    cluster.renew("v")
    shown = {worker.facts.name: worker.memory for worker in cluster.workers.workers()}
    assert shown == {"v": None, "w": DeviceMemory(3 * GIB, 8 * GIB)}
    assert 0 < cluster.client.pttl(cluster.key("memory", "w")) <= cluster.settings.lease_ttl_s * 1000


def test_a_sign_of_life_is_heard_by_a_server_that_is_full(cluster: Cluster, redis_url: str) -> None:
    cluster.join("w")
    with redis.Redis.from_url(redis_url) as client:
        client.config_set("maxmemory", 1)
        try:
            assert cluster.workers.renew("w", cluster.incarnations["w"], (), DeviceMemory(1, 2)).alive
        finally:
            client.config_set("maxmemory", 0)


def test_reading_many_jobs_adds_them_all_up(cluster: Cluster) -> None:
    for number in range(205):
        cluster.submit(f"{number:012x}", items=2)
    assert items(cluster, "generate") == {"pending": 410} and figures(cluster).jobs["pending"] == 205
