"""Jobs whose results are kept for Celery: no owner, no parking, their bytes counted until somebody forgets them or their time is over."""
from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from distributed_comfy.state.records import SpoolPlace
from tests.integration.state.conftest import OpenCluster
from tests.state_cluster import Cluster, Job, submission

KEPT_S = 3600


@pytest.fixture
def cluster(new_cluster: OpenCluster) -> Cluster:
    return new_cluster(blob_ttl_s=KEPT_S, job_bytes_in_flight=2**20, ownerless_ttl_s=600)


def keep(cluster: Cluster, job_id: str, **changes: Any) -> None:
    """Submit a job whose results are kept."""
    whole = submission(job_id, Job(**changes))
    cluster.jobs.submit(replace(whole, record=replace(whole.record, results="celery")), owner="")


def long_ago(cluster: Cluster, job_id: str, field: str, seconds: float) -> None:
    """Something about the job happened so many seconds earlier."""
    cluster.client.hincrby(cluster.key("job", job_id), field, -round(seconds * 1000))


def claims_of(cluster: Cluster, worker: str, count: int, size_bytes: int) -> list[tuple[int, str]]:
    """The worker does items one after the other; index and claim of each."""
    done = []
    for _ in range(count):
        claim = cluster.take(worker)
        assert cluster.complete(worker, claim, size_bytes)
        done.append((claim.index, claim.claim_id))
    return done


def test_such_a_job_has_no_owner_and_is_never_parked(cluster: Cluster) -> None:
    cluster.join("w")
    keep(cluster, "a", items=2)
    for _ in range(3):
        cluster.reap()
    assert cluster.jobs.owner("a") == "" and cluster.jobs.job_state("a").state == "pending"
    assert cluster.answer_tickets() == ["a", "a"]
    assert cluster.jobs.job_state("a").state == "done"


def test_its_results_are_let_go_when_their_time_is_over_and_not_before(cluster: Cluster) -> None:
    cluster.join("w")
    keep(cluster, "a")
    cluster.answer_tickets(500)
    long_ago(cluster, "a", "ended_ms", KEPT_S - 60)
    assert cluster.reap().abandoned == () and cluster.jobs.unfetched("a") == 500
    long_ago(cluster, "a", "ended_ms", 61)
    assert cluster.reap().abandoned == ("a",) and cluster.jobs.unfetched("a") == 0


def test_finished_results_of_a_job_that_was_cancelled_are_kept_as_long(cluster: Cluster) -> None:
    cluster.join("w")
    keep(cluster, "a", items=2)
    claims_of(cluster, "w", 1, 500)
    cluster.jobs.cancel("a", "enough")
    assert cluster.reap().abandoned == () and cluster.jobs.unfetched("a") == 500
    long_ago(cluster, "a", "ended_ms", KEPT_S + 1)
    assert cluster.reap().abandoned == ("a",)


def test_only_the_cap_on_all_bytes_holds_it_back_and_forgetting_makes_room(cluster: Cluster) -> None:
    cluster.join("w")
    cluster.jobs.set_byte_limit(4 * 2**20)
    keep(cluster, "a", items=10)
    done = claims_of(cluster, "w", 3, 2**20)
    claim = cluster.take("w")  # more than the 1 MiB of one job that a collector fetches
    assert cluster.complete("w", claim, 2**20)
    assert cluster.claim("w") is None
    cluster.tickets.clear()
    index, claim_id = done[0]
    cluster.jobs.mark_fetched("a", index, claim_id)
    assert cluster.tickets == ["w"] and cluster.take("w").job_id == "a"


def test_a_job_that_its_own_results_hold_up_says_so_until_there_is_room(cluster: Cluster) -> None:
    cluster.join("w")
    cluster.jobs.set_byte_limit(2 * 2**20)
    keep(cluster, "a", items=4)
    done = claims_of(cluster, "w", 2, 2**20)
    assert cluster.jobs.job_state("a").reason == ""
    cluster.reap()
    assert "forget() some of them" in cluster.jobs.job_state("a").reason
    cluster.jobs.mark_fetched("a", *done[0])
    cluster.reap()
    assert cluster.jobs.job_state("a").reason == ""


def test_a_job_that_is_held_up_for_longer_than_its_results_last_is_cancelled(cluster: Cluster) -> None:
    cluster.join("w")
    cluster.jobs.set_byte_limit(2 * 2**20)
    keep(cluster, "a", items=4)
    claims_of(cluster, "w", 2, 2**20)
    cluster.reap()
    long_ago(cluster, "a", "stuck_ms", KEPT_S - 60)
    cluster.reap()
    assert cluster.jobs.job_state("a").state == "running"
    long_ago(cluster, "a", "stuck_ms", 61)
    cluster.reap()
    state = cluster.jobs.job_state("a")
    assert (state.state, state.reason) == ("cancelled", "nobody took its results, and they left no room for more")


def test_a_paused_job_is_not_held_up_by_its_results(cluster: Cluster) -> None:
    cluster.join("w")
    keep(cluster, "a", items=2)
    claims_of(cluster, "w", 1, 500)
    cluster.jobs.pause("a")
    cluster.reap()
    assert cluster.client.hget(cluster.key("job", "a"), "stuck_ms") is None


def test_where_a_collector_keeps_what_it_fetched_is_known_to_all(cluster: Cluster) -> None:
    cluster.join("w")
    cluster.submit("a")
    assert cluster.jobs.spool("a") is None
    place = SpoolPlace("pc1", "/out/.distributed-comfy/a", "/out")
    for _ in range(2):
        cluster.jobs.note_spool("a", place)
    assert cluster.jobs.spool("a") == place
    cluster.jobs.note_spool("unknown", place)
    assert cluster.jobs.spool("unknown") is None
