"""Which item a worker gets: every rule of the claim order by itself, strongest first."""
from __future__ import annotations

import pytest

from tests.integration.state.conftest import OpenCluster
from tests.state_cluster import Cluster


def warm_since(cluster: Cluster, worker: str, ms_ago: int) -> None:
    """The worker has served its present job for this long."""
    cluster.client.hset(cluster.key("worker", worker), "warm_ms", cluster.now_ms() - ms_ago)


@pytest.fixture
def cluster(new_cluster: OpenCluster) -> Cluster:
    cluster = new_cluster(slots=8, warm_slice_s=0)
    cluster.join("w")
    cluster.join("x", "y", "z")  # they only make the cluster larger: before its first result a job runs at most twice per worker
    return cluster


def test_an_item_that_was_given_back_comes_first(cluster: Cluster) -> None:
    cluster.submit("early", items=2, priority=9)
    cluster.submit("late", items=2, priority=0)
    first = cluster.take("w")
    cluster.jobs.pause("early")
    other = cluster.take("w")
    cluster.jobs.resume("early")
    assert (first.job_id, other.job_id) == ("early", "late")
    cluster.give_back("w", other)
    claim = cluster.take("w")
    assert (claim.job_id, claim.index) == ("late", 0)


def test_of_two_jobs_with_items_given_back_the_older_one_comes_first(cluster: Cluster) -> None:
    for name in ("old", "new"):
        cluster.submit(name)
    old, new = cluster.take("w"), cluster.take("w")
    cluster.give_back("w", new)
    cluster.give_back("w", old)
    assert [cluster.taken("w"), cluster.taken("w")] == ["old", "new"]


def test_a_last_stage_comes_before_new_items_of_any_priority(cluster: Cluster) -> None:
    cluster.submit("ending", last_needs=("Sampler",), priority=0)
    cluster.work("w")
    cluster.submit("urgent", priority=9)
    assert cluster.jobs.unblock("ending", [(1, "{}")])
    assert [cluster.taken("w"), cluster.taken("w")] == ["ending", "urgent"]


def test_the_higher_priority_comes_first(cluster: Cluster) -> None:
    for priority in (3, 7, 5):
        cluster.submit(f"p{priority}", priority=priority)
    assert [cluster.taken("w") for _ in range(3)] == ["p7", "p5", "p3"]


def test_a_changed_priority_counts_at_once(cluster: Cluster) -> None:
    cluster.submit("a", priority=5)
    cluster.submit("b", priority=5)
    cluster.jobs.set_priority("b", 6)
    assert [cluster.taken("w"), cluster.taken("w")] == ["b", "a"]


def test_a_job_that_waits_gains_a_step_per_tick_of_aging_until_it_is_served(cluster: Cluster) -> None:
    cluster.submit("waits", items=2, priority=4)
    cluster.submit("urgent", items=3, priority=5)
    assert cluster.taken("w") == "urgent"
    for _ in range(2):
        cluster.client.zadd(cluster.key("aging"), {"waits": 0})
        cluster.reap()
    assert cluster.number("waits", "level") == 6
    cluster.client.zadd(cluster.key("aging"), {"waits": cluster.now_ms() + 5})
    assert cluster.taken("w") == "waits"
    assert cluster.number("waits", "level") == 4
    assert cluster.client.zscore(cluster.key("aging"), "waits") > cluster.now_ms() + 50_000  # it waits anew
    assert cluster.taken("w") == "urgent"


def test_aging_stops_at_the_top(cluster: Cluster) -> None:
    cluster.submit("waits", priority=9)
    cluster.client.zadd(cluster.key("aging"), {"waits": 0})
    cluster.reap()
    assert cluster.number("waits", "level") == 9
    assert cluster.client.zscore(cluster.key("aging"), "waits") > cluster.now_ms()


def test_the_submitter_with_the_fewest_running_items_comes_first(cluster: Cluster) -> None:
    cluster.submit("ann-1", items=4, submitter="ann")
    assert [cluster.taken("w"), cluster.taken("w")] == ["ann-1", "ann-1"]
    cluster.submit("bob-1", items=4, submitter="bob")
    assert [cluster.taken("w") for _ in range(4)] == ["bob-1", "bob-1", "ann-1", "bob-1"]


def test_running_items_of_every_signature_and_priority_count_for_a_submitter(cluster: Cluster) -> None:
    cluster.join("w", has=("Sampler", "Upscaler"))
    cluster.submit("ann-high", priority=8, needs=("Upscaler",))
    assert cluster.taken("w") == "ann-high"
    cluster.submit("ann-1")
    cluster.submit("bob-1", submitter="bob")
    assert [cluster.taken("w"), cluster.taken("w")] == ["bob-1", "ann-1"]


def test_of_two_submitters_with_as_many_running_the_least_recently_served_comes_first(cluster: Cluster) -> None:
    cluster.submit("ann-1", items=3, submitter="ann")
    cluster.submit("bob-1", items=3, submitter="bob")
    assert [cluster.work("w") for _ in range(4)] == ["ann-1", "bob-1", "ann-1", "bob-1"]


def test_a_newcomer_stands_behind_those_who_wait_already(cluster: Cluster) -> None:
    cluster.submit("ann-1", items=3, submitter="ann")
    cluster.submit("bob-1", items=3, submitter="bob")
    assert [cluster.work("w"), cluster.work("w")] == ["ann-1", "bob-1"]
    cluster.submit("aaa-1", submitter="aaa")
    assert [cluster.work("w") for _ in range(3)] == ["ann-1", "aaa-1", "bob-1"]


def test_the_job_with_the_fewest_running_items_comes_first(cluster: Cluster) -> None:
    cluster.submit("a", items=3)
    cluster.submit("b", items=3)
    assert [cluster.taken("w") for _ in range(6)] == ["a", "b", "a", "b", "a", "b"]


def test_jobs_of_one_submitter_share_over_signatures_too(cluster: Cluster) -> None:
    cluster.join("w", has=("Sampler", "Upscaler"))
    cluster.submit("a", items=2)
    cluster.submit("b", items=2, needs=("Upscaler",))
    assert [cluster.taken("w") for _ in range(4)] == ["a", "b", "a", "b"]


def test_at_last_the_older_job_comes_first(cluster: Cluster) -> None:
    for name in ("z", "y", "x"):
        cluster.submit(name)
    assert [cluster.work("w") for _ in range(3)] == ["z", "y", "x"]


def test_items_of_a_job_come_in_order(cluster: Cluster) -> None:
    cluster.submit("a", items=8)
    assert [cluster.take("w").index for _ in range(8)] == list(range(8))


def test_a_worker_stays_with_its_job_for_a_warm_slice_and_then_moves_on(new_cluster: OpenCluster) -> None:
    cluster = new_cluster(warm_slice_s=30)
    cluster.join("w", has=("Sampler", "Upscaler"))
    for name, needs in (("a", ("Sampler",)), ("b", ("Sampler",)), ("c", ("Upscaler",))):
        cluster.submit(name, items=5, needs=needs)
    assert [cluster.work("w") for _ in range(3)] == ["a", "a", "a"]
    warm_since(cluster, "w", 31_000)
    assert [cluster.work("w") for _ in range(2)] == ["b", "b"]
    warm_since(cluster, "w", 31_000)
    assert cluster.work("w") == "a"  # the oldest again, not the next in a row
    warm_since(cluster, "w", 31_000)
    cluster.jobs.pause("b")
    assert cluster.work("w") == "c"


def test_a_warm_worker_with_nobody_waiting_stays_after_its_slice(new_cluster: OpenCluster) -> None:
    cluster = new_cluster(warm_slice_s=30)
    cluster.join("w")
    cluster.submit("a", items=3)
    assert cluster.work("w") == "a"
    warm_since(cluster, "w", 31_000)
    assert cluster.work("w") == "a"
    cluster.submit("b")
    assert cluster.work("w") == "b"


def test_a_warm_slice_does_not_win_over_fewer_running_items(new_cluster: OpenCluster) -> None:
    cluster = new_cluster(warm_slice_s=30)
    cluster.join("v", "w")
    cluster.submit("a", items=4)
    cluster.take("v")
    cluster.work("w")
    cluster.submit("b", items=2)
    assert cluster.taken("w") == "b"


def test_a_warm_slice_lasts_over_submitters_served_within_it_but_not_over_one_who_waits(new_cluster: OpenCluster) -> None:
    cluster = new_cluster(warm_slice_s=30)
    cluster.join("v", "w")
    cluster.submit("ann-1", items=9, submitter="ann")
    cluster.submit("bob-1", items=9, submitter="bob")
    assert [cluster.work("w"), cluster.work("v")] == ["ann-1", "bob-1"]
    assert [cluster.work("w"), cluster.work("w")] == ["ann-1", "ann-1"]  # bob was served a moment ago
    cluster.client.hset(cluster.key("submitter", "bob"), "served_ms", cluster.now_ms() - 31_000)
    assert cluster.work("w") == "bob-1"
    cluster.submit("eve-1", submitter="eve")
    assert cluster.work("w") == "eve-1"  # never served


def test_a_warm_job_at_a_lower_priority_is_left(new_cluster: OpenCluster) -> None:
    cluster = new_cluster(warm_slice_s=30)
    cluster.join("w")
    cluster.submit("a", items=3)
    cluster.work("w")
    cluster.submit("b", priority=6)
    assert [cluster.work("w"), cluster.work("w")] == ["b", "a"]


@pytest.mark.parametrize("known", [7, 30])
def test_a_worker_finds_its_own_among_many_signatures(cluster: Cluster, known: int) -> None:
    cluster.join("w", has=[f"Class{k}" for k in range(100, 100 + known)])
    for k in range(100 + known):
        cluster.submit(f"j{k}", needs=(f"Class{k}",))
    assert [cluster.work("w") for _ in range(known)] == [f"j{k}" for k in range(100, 100 + known)]
    assert cluster.claim("w") is None


def test_a_worker_finds_its_submitter_among_many(cluster: Cluster) -> None:
    cluster.join("w", has=("Rare",))
    for k in range(40):
        cluster.submit(f"j{k}", submitter=f"user{k}")
    cluster.submit("rare", submitter="last", needs=("Rare",))
    assert cluster.work("w") == "rare"


def test_names_of_submitters_may_hold_anything(cluster: Cluster) -> None:
    for name in ("bob", "bob:places", "5:sig", "a|b", "x*", "ü ", "'"):
        cluster.submit(f"of {name}", submitter=name, items=2)
    assert len({cluster.work("w") for _ in range(7)}) == 7
