"""Bytes in flight are capped at claim, per job and in all, and nothing ever deadlocks."""
from __future__ import annotations

import pytest

from tests.integration.state.conftest import OpenCluster
from tests.state_cluster import Cluster

MIB = 2**20


def fetch(cluster: Cluster, job_id: str) -> int:
    """The owner fetches every result that is there; how many."""
    count = 0
    for index, item in cluster.jobs.item_states(job_id).items():
        if item.state == "done":
            cluster.jobs.mark_fetched(job_id, index, item.claim_id)
            count += 1
    return count


def in_flight(cluster: Cluster) -> int:
    return int(cluster.client.get(cluster.key("inflight")) or 0)


@pytest.fixture
def cluster(new_cluster: OpenCluster) -> Cluster:
    return new_cluster(job_bytes_in_flight=10 * MIB)


def test_before_its_first_result_a_job_runs_at_most_twice_per_capable_worker(new_cluster: OpenCluster) -> None:
    cluster = new_cluster(slots=4)
    cluster.join("v", "w")
    cluster.submit("a", items=8)
    claims = [cluster.claim(name) for name in ("v", "w", "v", "w", "v", "w")]
    assert [claim is not None for claim in claims] == [True] * 4 + [False] * 2
    cluster.tickets.clear()
    cluster.join("x")  # one worker more, two items more
    assert len(cluster.tickets) == 2


def test_a_result_without_bytes_counts_as_a_known_size(new_cluster: OpenCluster) -> None:
    cluster = new_cluster(slots=4)
    cluster.join("w")
    cluster.submit("a", items=9)
    assert cluster.work("w") == "a"
    assert [cluster.taken("w") for _ in range(4)] == ["a"] * 4


def test_a_job_at_its_cap_waits_until_its_owner_fetches(cluster: Cluster) -> None:
    cluster.join("w")
    cluster.submit("a", items=5)
    ran = cluster.answer_tickets(size_bytes=4 * MIB)
    assert ran == ["a", "a"]  # a third would make 12 MiB
    assert cluster.claim("w") is None
    cluster.jobs.mark_fetched("a", 0, cluster.jobs.item_states("a")[0].claim_id)
    assert cluster.answer_tickets(size_bytes=4 * MIB) == ["a"]
    fetch(cluster, "a")
    assert cluster.answer_tickets(size_bytes=4 * MIB) == ["a", "a"]
    assert cluster.jobs.job_state("a").state == "done"


def test_running_items_are_booked_with_the_largest_result_so_far(cluster: Cluster) -> None:
    cluster.join("u", "v", "w")
    cluster.submit("a", items=6)
    cluster.work("u", 4 * MIB)
    fetch(cluster, "a")
    assert cluster.claim("u") is not None
    assert cluster.claim("v") is not None
    assert in_flight(cluster) == 8 * MIB
    assert cluster.claim("w") is None


def test_a_release_makes_room(cluster: Cluster) -> None:
    cluster.join("u", "v", "w")
    cluster.submit("a", items=6)
    cluster.work("u", 4 * MIB)
    fetch(cluster, "a")
    first = cluster.take("u")
    cluster.take("v")
    assert cluster.claim("w") is None
    cluster.tickets.clear()
    cluster.give_back("u", first)
    assert len(cluster.tickets) == 1


def test_one_item_larger_than_the_cap_runs_alone(cluster: Cluster) -> None:
    cluster.join("v", "w")
    cluster.submit("a", items=3)
    cluster.work("v", 50 * MIB)
    assert cluster.claim("w") is None
    cluster.tickets.clear()
    for _ in range(2):
        fetch(cluster, "a")
        assert len(cluster.tickets) == 1
        assert cluster.answer_tickets(size_bytes=50 * MIB) == ["a"]
    assert cluster.jobs.job_state("a").state == "done"


def test_fetching_twice_counts_once(cluster: Cluster) -> None:
    cluster.join("w")
    cluster.submit("a", items=3)
    for _ in range(2):
        cluster.work("w", 3 * MIB)
    for _ in range(3):
        cluster.jobs.mark_fetched("a", 0, cluster.jobs.item_states("a")[0].claim_id)
    assert in_flight(cluster) == 3 * MIB


def test_fetching_with_another_claim_counts_nothing(cluster: Cluster) -> None:
    cluster.join("w")
    cluster.submit("a", items=2)
    cluster.work("w", 3 * MIB)
    cluster.jobs.mark_fetched("a", 0, "another claim")
    cluster.jobs.mark_fetched("a", 1, "")
    assert in_flight(cluster) == 3 * MIB


def test_given_back_items_wait_for_room_like_new_ones(cluster: Cluster) -> None:
    cluster.join("v", "w")
    cluster.submit("a", items=3)
    running = cluster.take("v")
    cluster.work("w", 9 * MIB)
    cluster.give_back("v", running)
    assert cluster.claim("v") is None
    fetch(cluster, "a")
    assert cluster.take("v").index == running.index


def test_the_last_stage_runs_at_the_cap(cluster: Cluster) -> None:
    cluster.join("w")
    cluster.submit("a", items=1, last_needs=("Sampler",))
    cluster.work("w", 50 * MIB)
    cluster.jobs.unblock("a", [(1, "{}")])
    assert cluster.answer_tickets(size_bytes=50 * MIB) == ["a"]
    assert cluster.jobs.job_state("a").state == "done"


def test_the_cap_on_all_bytes_holds_other_jobs_too_but_each_may_run_one_item(cluster: Cluster) -> None:
    cluster.jobs.set_byte_limit(8 * MIB)
    cluster.join("w")
    cluster.submit("a", items=4, submitter="ann")
    cluster.submit("b", items=4, submitter="bob")
    assert sorted(cluster.answer_tickets(size_bytes=4 * MIB)) == ["a", "b"]
    assert in_flight(cluster) == 8 * MIB
    assert cluster.claim("w") is None
    fetch(cluster, "a")
    assert sorted(cluster.answer_tickets(size_bytes=4 * MIB)) == ["a", "b"]  # b fits, and a has nothing in flight
    assert in_flight(cluster) == 12 * MIB
    assert cluster.claim("w") is None


@pytest.mark.parametrize("end", ["small result", "release", "forgotten"])
def test_an_item_that_ends_with_less_than_was_booked_makes_room_for_other_jobs(cluster: Cluster, end: str) -> None:
    cluster.jobs.set_byte_limit(8 * MIB)
    cluster.join("u", "v", "w")
    cluster.submit("a", items=3, submitter="ann")
    cluster.submit("b", items=3, submitter="bob")
    assert [cluster.work("u", 4 * MIB), cluster.work("u", 4 * MIB)] == ["a", "b"]
    fetch(cluster, "b")
    running = cluster.take("u")
    assert running.job_id == "b"
    assert [cluster.claim("v"), cluster.claim("w")] == [None, None]
    assert cluster.number("a", "offered") == 0
    cluster.tickets.clear()
    if end == "release":
        cluster.give_back("u", running)
    elif end == "forgotten":
        cluster.renew("u")
        cluster.renew("u")
    else:
        cluster.complete("u", running)
    assert cluster.number("a", "offered") == 1
    assert len(cluster.tickets) >= 2


@pytest.mark.parametrize("end", ["cancel", "abandon", "settle"])
def test_the_bytes_of_an_ended_job_make_room_for_those_that_wait(cluster: Cluster, end: str) -> None:
    cluster.jobs.set_byte_limit(8 * MIB)
    cluster.join("w")
    cluster.submit("b", items=2)
    assert cluster.work("w", 2 * MIB) == "b"
    cluster.submit("a", items=1 if end == "settle" else 2, submitter="eve")
    assert cluster.work("w", 7 * MIB) == "a"
    assert cluster.claim("w") is None
    cluster.tickets.clear()
    if end == "cancel":
        cluster.jobs.cancel("a", "enough")
        assert cluster.tickets == []  # what is there may still be fetched
    if end == "abandon":
        cluster.jobs.cancel("a", "enough")
        cluster.disown("a")
        assert cluster.reap().abandoned == ("a",)
    else:
        cluster.jobs.settle("a")
    assert cluster.tickets == ["w"]
    assert cluster.work("w") == "b"


def test_a_running_job_is_not_settled(cluster: Cluster) -> None:
    cluster.join("w")
    cluster.submit("a", items=2)
    cluster.work("w", MIB)
    cluster.jobs.settle("a")
    assert in_flight(cluster) == MIB


def test_many_jobs_at_the_cap_on_all_bytes_are_passed_over_in_one_go(cluster: Cluster) -> None:
    cluster.jobs.set_byte_limit(40 * MIB)
    names = [f"w{k}" for k in range(40)]
    cluster.join(*names)
    for k in range(40):
        cluster.submit(f"j{k}", items=2)
    for name, claim in [(name, cluster.take(name)) for name in names]:
        cluster.complete(name, claim, MIB)
    cluster.submit("fresh")
    assert cluster.answer_tickets(size_bytes=MIB) == ["fresh"]  # one item is always allowed
    while any(fetch(cluster, f"j{k}") for k in range(40) if cluster.jobs.job_state(f"j{k}").state != "done"):
        cluster.answer_tickets(size_bytes=MIB)
    assert {state.state for state in cluster.jobs.jobs().values()} == {"done"}


def test_a_worker_that_met_only_jobs_that_are_held_is_called_again(cluster: Cluster) -> None:
    names = [f"w{k}" for k in range(40)]
    cluster.join(*names)
    for k in range(40):
        cluster.submit(f"j{k}", items=3)
    for name, claim in [(name, cluster.take(name)) for name in names]:
        cluster.complete(name, claim, MIB)
    cluster.tickets.clear()
    cluster.submit("fresh")
    cluster.jobs.set_byte_limit(MIB)  # nobody has looked since
    for name in names[1:]:
        cluster.jobs.drain(name)
    cluster.age_tickets()
    cluster.reap()
    calls = 0
    while cluster.tickets:
        calls += 1
        if cluster.work("w0", MIB) == "fresh":
            break
    assert cluster.jobs.job_state("fresh").state == "done"
    assert 2 <= calls <= 5


@pytest.mark.parametrize("size_bytes", [3 * MIB, 30 * MIB])
def test_fifty_workers_at_the_cap_finish_every_job_with_the_reaper_off(cluster: Cluster, size_bytes: int) -> None:
    cluster.jobs.set_byte_limit(25 * MIB)
    cluster.join(*(f"w{k:02}" for k in range(50)))
    for k in range(6):
        cluster.submit(f"j{k}", items=10, submitter=f"user{k % 2}")
    claims = {}
    peak = 0
    while any(not state.ended for state in cluster.jobs.jobs().values()):
        moved = False
        while cluster.tickets:  # everyone who is called takes something at once, before anyone finishes
            name = cluster.tickets[0]
            claim = cluster.claim(name)
            if claim is not None:
                claims[name] = claim
                moved = True
        peak = max(peak, in_flight(cluster))
        for name in list(claims)[:7]:
            assert cluster.complete(name, claims.pop(name), size_bytes)
            moved = True
        if not moved or not claims:
            moved = sum(fetch(cluster, f"j{k}") for k in range(6)) > 0
        assert moved, "nothing moves any more"
    unknown = 6 * 2 * 50  # before its first result a job may run twice per worker
    assert peak <= (unknown + 12) * size_bytes


def test_bytes_that_were_let_go_are_not_counted_when_the_job_runs_again(cluster: Cluster) -> None:
    cluster.join("w")
    cluster.submit("a", items=4)
    for _ in range(2):
        cluster.work("w", 4 * MIB)
    cluster.jobs.cancel("a", "enough")
    cluster.disown("a")
    assert cluster.reap().abandoned == ("a",)
    cluster.jobs.retry("a")
    cluster.jobs.own("a", "owner")
    assert in_flight(cluster) == 0
    cluster.work("w", 4 * MIB)
    assert fetch(cluster, "a") == 3  # two of them are gone, which only the owner finds out
    assert in_flight(cluster) == 0
    first = cluster.jobs.item_states("a")[0]
    assert cluster.jobs.reopen("a", 0, first.claim_id)
    assert in_flight(cluster) == 0
    assert sorted(cluster.answer_tickets(4 * MIB)) == ["a", "a"]
    assert in_flight(cluster) == 8 * MIB
