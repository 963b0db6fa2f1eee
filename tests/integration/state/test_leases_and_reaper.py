"""Leases, signs of life, other lives of a name, and what one elected process does once per tick."""
from __future__ import annotations

import pytest
import redis

from distributed_comfy.errors import WorkerLost, WorkerNameTaken
from distributed_comfy.messages import ItemResult
from distributed_comfy.state.records import DeviceMemory
from tests.integration.state.conftest import OpenCluster
from tests.state_cluster import LEASE_S, Cluster


# -- register -----------------------------------------------------------------------------------------------------------
def test_a_second_worker_of_a_live_name_is_refused_and_told_how_long_to_wait(cluster: Cluster) -> None:
    cluster.join("w")
    with pytest.raises(WorkerNameTaken) as caught:
        cluster.join("w", incarnation="another")
    assert 0 < caught.value.lease_ms <= LEASE_S * 1000


def test_another_life_of_a_name_gets_the_items_of_the_last_one_back(cluster: Cluster) -> None:
    cluster.join("w")
    cluster.submit("a")
    old = cluster.take("w", "c1")
    cluster.expire("w")
    cluster.join("w", incarnation="second")
    assert cluster.tickets == ["w"]
    again = cluster.take("w", "c2")
    assert (again.job_id, again.index, again.attempt) == ("a", 0, 2)
    assert not cluster.workers.complete("w", "life-of-w", old, ItemResult())
    with pytest.raises(WorkerLost):
        cluster.workers.claim("w", "life-of-w", "c3")
    assert not cluster.workers.renew("w", "life-of-w", ["c1"]).alive
    assert cluster.complete("w", again)


def test_an_item_that_kills_every_life_of_a_name_fails_in_the_end(new_cluster: OpenCluster) -> None:
    cluster = new_cluster(max_attempts=3)
    cluster.submit("a")
    for life in range(3):
        cluster.expire("w")
        cluster.join("w", incarnation=f"life {life}")
        cluster.take("w")
    cluster.expire("w")
    cluster.join("w", incarnation="last")
    state = cluster.jobs.job_state("a")
    assert state.state == "failed"
    assert state.error is not None
    assert state.error["code"] == "worker_lost"


def test_registering_again_in_the_same_life_keeps_items_and_calls_nobody_twice(cluster: Cluster) -> None:
    cluster.join("w")
    cluster.submit("a", items=2)
    claim = cluster.take("w")
    cluster.join("w")
    assert cluster.tickets == []
    assert cluster.complete("w", claim)
    assert cluster.tickets == ["w"]


def test_a_capability_goes_with_the_last_worker_that_has_it(cluster: Cluster) -> None:
    cluster.join("v", "w")
    cluster.submit("a", needs=("Sampler",))
    assert set(cluster.client.hkeys(cluster.key("caps"))) == {"cap-Sampler"}
    cluster.join("v", has=("Sampler", "More"))
    assert set(cluster.client.hkeys(cluster.key("caps"))) == {"cap-Sampler", "cap-More-Sampler"}
    cluster.join("w", has=("Sampler", "More"))
    assert set(cluster.client.hkeys(cluster.key("caps"))) == {"cap-More-Sampler"}
    assert cluster.client.keys("*cap-Sampler*") == []


def test_a_new_node_class_makes_a_waiting_job_start(cluster: Cluster) -> None:
    cluster.join("w", has=("Sampler",))
    cluster.submit("a", needs=("Sampler", "Upscaler"))
    assert cluster.tickets == []
    cluster.join("w", has=("Sampler", "Upscaler"))
    assert cluster.answer_tickets() == ["a"]


def test_a_class_that_a_ticketed_worker_lost_is_asked_of_another(cluster: Cluster) -> None:
    cluster.join("v", "w")
    cluster.submit("a")
    (called,) = cluster.tickets
    cluster.join(called, has=("Other",))
    assert cluster.answer_tickets() == ["a"]


def test_a_name_can_be_reserved_while_its_worker_starts(cluster: Cluster) -> None:
    assert cluster.workers.reserve_name("w")
    assert not cluster.workers.reserve_name("w")
    cluster.join("w")
    assert cluster.workers.reserve_name("w")


# -- renew --------------------------------------------------------------------------------------------------------------
def test_what_a_worker_does_not_hold_goes_back_at_its_second_sign_of_life(cluster: Cluster) -> None:
    cluster.join("v", "w")
    cluster.submit("a", items=2)
    kept, dropped = cluster.take("v"), cluster.take("w")
    assert cluster.renew("w").lost == ()
    assert cluster.renew("v", kept.claim_id).lost == ()
    assert cluster.tickets == []
    cluster.renew("w")
    assert cluster.jobs.item_states("a")[dropped.index].state == "pending"
    assert cluster.jobs.item_states("a")[dropped.index].attempts == 0
    assert cluster.tickets == ["w"]
    assert cluster.complete("v", kept)


def test_a_sign_of_life_written_before_the_claim_and_read_after_it_takes_nothing_away(cluster: Cluster) -> None:
    cluster.join("w")
    cluster.submit("a")
    claim = cluster.take("w", "c1")
    script = cluster.scripts.run
    for _ in range(2):  # redis-py may send it twice
        assert script("renew", "w", "life-of-w", 6000, 1000, "the same call") == ["ok", "0"]
    assert cluster.renew("w", "c1").lost == ()
    cluster.renew("w")
    cluster.renew("w", "c1")
    cluster.renew("w")
    assert cluster.jobs.item_states("a")[0].state == "running"
    assert cluster.complete("w", claim)
    assert cluster.client.keys(cluster.key("unheld", "*")) == []


def test_a_claim_that_is_still_being_asked_for_is_reported_but_not_spoilt(cluster: Cluster) -> None:
    """The caller must not take it for lost: the claim's own answer decides."""
    cluster.join("w")
    cluster.submit("a")
    assert cluster.renew("w", "c1").lost == ("c1",)
    claim = cluster.take("w", "c1")
    assert cluster.renew("w", "c1").lost == ()
    assert cluster.complete("w", claim)


def test_a_claim_whose_end_was_just_entered_is_reported_but_stays_done(cluster: Cluster) -> None:
    cluster.join("w")
    cluster.submit("a")
    claim = cluster.take("w")
    assert cluster.complete("w", claim)
    assert cluster.renew("w", claim.claim_id).lost == (claim.claim_id,)
    assert cluster.complete("w", claim)
    assert cluster.jobs.job_state("a").state == "done"


def test_a_sign_of_life_makes_a_lease_that_ran_out_good_until_the_reaper_comes(cluster: Cluster) -> None:
    cluster.join("w")
    cluster.submit("a")
    claim = cluster.take("w")
    cluster.expire("w")
    assert cluster.renew("w", claim.claim_id).alive
    assert cluster.reap().gone == ()
    assert cluster.complete("w", claim)


def test_a_buried_worker_is_told_that_it_is_dead(cluster: Cluster) -> None:
    cluster.join("w")
    cluster.expire("w")
    cluster.reap()
    assert not cluster.renew("w").alive


def test_a_sign_of_life_replaces_a_lost_ticket(cluster: Cluster) -> None:
    cluster.join("w")
    cluster.submit("a")
    cluster.tickets.clear()
    cluster.renew("w")
    assert cluster.tickets == []  # it may still be under way
    cluster.age_tickets()
    cluster.renew("w")
    assert cluster.answer_tickets() == ["a"]


@pytest.mark.parametrize("busy", [True, False])
def test_signs_of_life_work_on_a_server_that_is_full(cluster: Cluster, busy: bool) -> None:
    cluster.join("w")
    cluster.submit("a")
    held = [cluster.take("w").claim_id] if busy else []
    if not busy:
        cluster.jobs.pause("a")
        cluster.claim("w")
    cluster.client.pexpire(cluster.key("lease", "w"), 5000)
    cluster.client.config_set("maxmemory", 1)
    try:
        with pytest.raises(redis.OutOfMemoryError):
            cluster.client.set("x", 1)
        for memory in (None, DeviceMemory(2, 3)):  # to note it needs memory, which is no matter
            assert cluster.workers.renew("w", cluster.incarnations["w"], held, memory).lost == ()
    finally:
        cluster.client.config_set("maxmemory", 0)
    assert cluster.workers.workers()[0].lease_ms > 0.9 * LEASE_S * 1000


# -- reaper -------------------------------------------------------------------------------------------------------------
def test_the_items_of_a_lost_worker_go_to_others_and_count_an_attempt(cluster: Cluster) -> None:
    cluster.join("v", "w")
    cluster.submit("a")
    cluster.take("v")
    cluster.expire("v")
    assert cluster.reap().gone == ("v",)
    assert cluster.tickets == ["w"]
    claim = cluster.take("w")
    assert claim.attempt == 2


def test_a_job_that_has_lost_its_last_worker_waits_for_another_one(cluster: Cluster) -> None:
    cluster.join("v")
    cluster.submit("a")
    cluster.take("v")
    cluster.expire("v")
    for _ in range(3):
        cluster.reap()
    assert cluster.workers.workers() == [] and cluster.jobs.job_state("a").state == "pending"
    cluster.tickets.clear()
    cluster.join("w")
    assert cluster.tickets == ["w"]
    assert cluster.complete("w", cluster.take("w"))
    assert cluster.jobs.job_state("a").state == "done"


def test_an_item_that_costs_every_worker_its_life_fails(new_cluster: OpenCluster) -> None:
    cluster = new_cluster(max_attempts=2)
    cluster.join("v", "w")
    cluster.submit("a")
    for name in ("v", "w"):
        cluster.take(name)
        cluster.expire(name)
        cluster.reap()
    state = cluster.jobs.job_state("a")
    assert state.state == "failed"
    assert state.error is not None
    assert state.error["code"] == "worker_lost"
    assert cluster.workers.workers() == []


def test_a_buried_worker_leaves_no_key_behind(cluster: Cluster) -> None:
    before = set(cluster.client.keys())
    cluster.join("w")
    cluster.submit("a", items=3, last_needs=("Saver",))
    cluster.join("other")
    cluster.give_back("w", cluster.take("w"), "lacks")
    cluster.renew("w")
    cluster.jobs.cancel("a", "enough")
    for name in ("w", "other"):
        cluster.expire(name)
    assert set(cluster.reap().gone) == {"w", "other"}
    left = {key for key in set(cluster.client.keys()) - before if cluster.client.ttl(key) == -1}
    assert left <= {cluster.key(name) for name in ("jobs", "ended", "sequence", "served", "reaper_facts", "inflight", "tallies")}


def test_two_processes_reap_once_per_tick(cluster: Cluster) -> None:
    cluster.reap()
    cluster.join("w")
    cluster.expire("w")
    assert cluster.workers.reap("second").gone == ()
    assert cluster.reap().gone == ("w",)


def test_after_a_restart_of_the_server_everyone_has_one_lease_to_speak_up(cluster: Cluster) -> None:
    cluster.join("w")
    cluster.submit("a", items=2)
    cluster.take("w")
    cluster.reap()
    cluster.expire("w")
    cluster.disown("a")
    cluster.client.delete(cluster.key("reaper"))
    cluster.client.hset(cluster.key("reaper_facts"), "run_id", "that of the server before")
    assert cluster.workers.reap("r").gone == ()
    assert cluster.jobs.job_state("a").state == "running"
    grace = int(cluster.client.hget(cluster.key("reaper_facts"), "grace_ms"))
    assert 0.9 * LEASE_S < (grace - cluster.now_ms()) / 1000 <= LEASE_S
    cluster.client.hset(cluster.key("reaper_facts"), "grace_ms", 0)
    cluster.client.delete(cluster.key("reaper"))
    assert cluster.workers.reap("r").gone == ("w",)


def test_a_parked_job_is_not_cancelled_in_the_first_tick_after_a_restart(new_cluster: OpenCluster) -> None:
    cluster = new_cluster(ownerless_ttl_s=0)
    cluster.submit("a")
    cluster.disown("a")
    cluster.reap()
    cluster.client.hincrby(cluster.key("job", "a"), "parked", -1)
    cluster.client.delete(cluster.key("reaper"))
    cluster.client.hset(cluster.key("reaper_facts"), "run_id", "that of the server before")
    cluster.workers.reap("r")
    assert cluster.jobs.job_state("a").state == "parked"


def test_after_a_stall_of_all_reapers_everyone_has_one_lease_to_speak_up(cluster: Cluster) -> None:
    cluster.join("w")
    cluster.reap()
    cluster.expire("w")
    cluster.client.delete(cluster.key("reaper"))
    long_ago = cluster.now_ms() - round(3500 * cluster.settings.reaper_interval_s)
    cluster.client.hset(cluster.key("reaper_facts"), "last_ms", long_ago)
    assert cluster.workers.reap("r").gone == ()
    cluster.client.delete(cluster.key("reaper"))
    assert cluster.workers.reap("r").gone == ()
    assert cluster.reap().gone == ("w",)


def test_a_lost_ticket_costs_one_tick_of_the_reaper(cluster: Cluster) -> None:
    cluster.join("w")
    cluster.submit("a")
    cluster.tickets.clear()
    cluster.reap()
    assert cluster.tickets == []
    cluster.age_tickets()
    cluster.reap()
    assert cluster.answer_tickets() == ["a"]


def test_a_worker_that_lets_tickets_pass_is_called_after_the_others(cluster: Cluster) -> None:
    cluster.join("deaf", "eager")
    cluster.submit("a")
    assert cluster.tickets == ["deaf"]
    cluster.tickets.clear()
    cluster.age_tickets()
    cluster.reap()
    assert cluster.tickets == ["eager"]
    cluster.answer_tickets()
    cluster.submit("b")
    assert cluster.tickets == ["eager"]
    cluster.submit("c")
    assert cluster.tickets == ["eager", "deaf"]
    cluster.work("deaf")  # it answers again
    cluster.answer_tickets()
    cluster.submit("d")
    assert cluster.tickets == ["deaf"]


def test_a_worker_without_a_lease_is_not_called(cluster: Cluster) -> None:
    cluster.join("v", "w")
    cluster.expire("v")
    cluster.submit("a", items=2)
    assert cluster.tickets == ["w"]


def test_bytes_that_nobody_will_fetch_are_let_go(cluster: Cluster) -> None:
    cluster.join("w")
    cluster.submit("a")
    cluster.work("w", 500)
    assert cluster.reap().abandoned == ()
    cluster.disown("a")
    assert cluster.reap().abandoned == ()  # a new owner may still come for them, as for a parked job
    cluster.client.hset(cluster.key("job", "a"), "ended_ms", 1)
    assert cluster.reap().abandoned == ("a",)
    assert cluster.reap().abandoned == ()
    assert cluster.client.get(cluster.key("inflight")) == "0"


def test_bytes_of_a_job_whose_keys_expired_are_let_go(cluster: Cluster) -> None:
    cluster.join("w")
    cluster.submit("a")
    cluster.work("w", 500)
    cluster.client.delete(*cluster.client.keys("dc:job:a*"))
    assert cluster.reap().abandoned == ("a",)
    assert cluster.client.get(cluster.key("inflight")) == "0"


