"""What people and owners order: pause, priority, cancel, retry, drain; and jobs whose owner is gone."""
from __future__ import annotations

import pytest

from distributed_comfy.errors import JobStateInvalid, JobUnknown, WorkerLost
from tests.integration.state.conftest import OpenCluster
from tests.state_cluster import OWNER, Cluster


# -- pause, resume, priority --------------------------------------------------------------------------------------------
def test_a_paused_job_hands_out_nothing_but_its_running_items_finish(cluster: Cluster) -> None:
    cluster.join("w")
    cluster.submit("a", items=2)
    claim = cluster.take("w")
    cluster.jobs.pause("a")
    assert cluster.jobs.job_state("a").state == "paused"
    assert cluster.complete("w", claim)
    assert cluster.tickets == []
    assert cluster.claim("w") is None


def test_a_resumed_job_calls_idle_workers(cluster: Cluster) -> None:
    cluster.submit("a", items=3)
    cluster.jobs.pause("a")
    cluster.join("v", "w")
    assert cluster.tickets == []
    cluster.jobs.resume("a")
    assert sorted(cluster.tickets) == ["v", "w"]
    assert cluster.answer_tickets() == ["a"] * 3


def test_pausing_twice_is_pausing_once(cluster: Cluster) -> None:
    cluster.submit("a")
    cluster.jobs.pause("a")
    cluster.jobs.pause("a")
    cluster.jobs.resume("a")
    assert cluster.jobs.job_state("a").state == "pending"


def test_a_new_priority_sends_no_second_ticket_for_the_same_item(cluster: Cluster) -> None:
    cluster.join("v", "w")
    cluster.submit("a")
    cluster.jobs.set_priority("a", 9)
    assert len(cluster.tickets) == 1
    assert cluster.jobs.job_state("a").priority == 9


def test_orders_to_unknown_or_ended_jobs_are_refused_by_name(cluster: Cluster) -> None:
    with pytest.raises(JobUnknown):
        cluster.jobs.pause("nobody")
    cluster.submit("a")
    cluster.jobs.cancel("a", "enough")
    for order in (cluster.jobs.pause, cluster.jobs.resume, lambda job: cluster.jobs.set_priority(job, 1)):
        with pytest.raises(JobStateInvalid) as caught:
            order("a")
        assert caught.value.state == "cancelled"


# -- cancel, retry ------------------------------------------------------------------------------------------------------
def test_a_cancelled_job_stops_its_workers_and_frees_them(cluster: Cluster) -> None:
    cluster.join("v", "w")
    cluster.submit("a", items=4)
    claims = [cluster.take("v"), cluster.take("w")]
    with cluster.client.pubsub(ignore_subscribe_messages=True) as orders:
        orders.subscribe(cluster.key("orders", "v"))
        orders.get_message(timeout=1)
        cluster.jobs.cancel("a", "enough")
        message = orders.get_message(timeout=1)
    assert message is not None
    assert message["data"] == f"cancel {claims[0].claim_id}"
    state = cluster.jobs.job_state("a")
    assert (state.state, state.reason, state.counts["running"]) == ("cancelled", "enough", 0)
    assert {item.state for item in cluster.jobs.item_states("a").values()} == {"pending", "stopped"}
    assert cluster.renew("v", claims[0].claim_id).lost == (claims[0].claim_id,)
    assert not cluster.complete("w", claims[1])
    cluster.submit("b", items=2)
    assert sorted(cluster.tickets) == ["v", "w"]


def test_cancelling_again_is_fine_and_cancelling_a_done_job_is_not(cluster: Cluster) -> None:
    cluster.join("w")
    cluster.submit("a")
    cluster.submit("b")
    cluster.work("w")
    cluster.jobs.cancel("b", "enough")
    cluster.jobs.cancel("b", "again")
    assert cluster.jobs.job_state("b").reason == "enough"
    with pytest.raises(JobStateInvalid):
        cluster.jobs.cancel("a", "too late")


def test_a_cancelled_job_gives_freed_workers_to_others(cluster: Cluster) -> None:
    cluster.join("w")
    cluster.submit("a")
    cluster.take("w")
    cluster.submit("b")
    assert cluster.tickets == []
    cluster.jobs.cancel("a", "enough")
    assert cluster.tickets == ["w"]
    assert cluster.answer_tickets() == ["b"]


@pytest.mark.parametrize("cancelled", [True, False])
def test_retry_runs_what_did_not_finish_and_nothing_else(cluster: Cluster, cancelled: bool) -> None:
    cluster.join("w")
    cluster.submit("a", items=4, last_needs=("Sampler",))
    cluster.work("w")
    claim = cluster.take("w")
    if cancelled:
        cluster.jobs.cancel("a", "enough")
    else:
        cluster.give_back("w", claim, "final")
    cluster.tickets.clear()
    cluster.jobs.retry("a")
    state = cluster.jobs.job_state("a")
    assert (state.counts["done"], state.counts["failed"], state.counts["pending"]) == (1, 0, 4)
    assert (state.reason, state.error, state.ended_ms) == ("", None, 0)
    assert all(item.error is None for item in cluster.jobs.item_states("a").values())
    assert cluster.client.zcard(cluster.key("ended")) == 0
    assert cluster.client.ttl(cluster.key("job", "a")) == -1
    assert cluster.answer_tickets() == ["a"] * 3
    assert cluster.jobs.unblock("a", [(4, "{}")])
    assert cluster.answer_tickets() == ["a"]
    assert cluster.jobs.job_state("a").state == "done"


def test_retry_works_after_the_signature_was_released_and_its_workers_came_later(cluster: Cluster) -> None:
    cluster.submit("a")
    cluster.jobs.cancel("a", "enough")
    assert cluster.client.hgetall(cluster.key("sigs")) == {}
    cluster.join("w")
    cluster.jobs.retry("a")
    assert cluster.answer_tickets() == ["a"]
    assert cluster.jobs.job_state("a").state == "done"


def test_retry_of_a_running_job_changes_nothing_and_of_a_done_one_is_refused(cluster: Cluster) -> None:
    cluster.join("w")
    cluster.submit("a", items=2)
    cluster.work("w")
    cluster.jobs.retry("a")
    assert cluster.jobs.job_state("a").counts["done"] == 1
    cluster.work("w")
    with pytest.raises(JobStateInvalid):
        cluster.jobs.retry("a")


def test_retry_keeps_an_item_that_was_backing_off(cluster: Cluster) -> None:
    cluster.join("v", "w")
    cluster.submit("a", items=3)
    for _ in range(2):  # the first retry is immediate
        cluster.give_back("w", cluster.take("w"), "retry")
    cluster.give_back("v", cluster.take("v"), "final")
    assert cluster.jobs.item_states("a")[0].state == "waiting"
    cluster.jobs.retry("a")
    cluster.end_backoff()
    cluster.reap()
    cluster.answer_tickets()
    assert cluster.jobs.job_state("a").state == "done"


# -- drain, suspend, leave ----------------------------------------------------------------------------------------------
def test_a_drained_worker_finishes_its_item_and_gets_no_more(cluster: Cluster) -> None:
    cluster.join("w")
    cluster.submit("a", items=2)
    claim = cluster.take("w")
    assert cluster.jobs.drain("w")
    assert cluster.complete("w", claim)
    assert cluster.tickets == []
    assert cluster.claim("w") is None
    assert cluster.workers.workers()[0].state == "drained"


def test_an_undrained_worker_is_called_again(cluster: Cluster) -> None:
    cluster.join("w")
    cluster.jobs.drain("w")
    assert cluster.client.exists(cluster.key("idle_caps")) == 0
    cluster.submit("a")
    assert cluster.tickets == []
    assert cluster.jobs.drain("w", drained=False)
    assert cluster.answer_tickets() == ["a"]


def test_draining_an_unknown_worker_says_so(cluster: Cluster) -> None:
    assert not cluster.jobs.drain("nobody")


@pytest.mark.parametrize("order", ["drain", "suspend", "leave"])
def test_the_ticket_of_a_worker_that_stops_claiming_goes_to_another(cluster: Cluster, order: str) -> None:
    cluster.join("v", "w")
    cluster.submit("a")
    (called,) = cluster.tickets
    other = "w" if called == "v" else "v"
    if order == "drain":
        cluster.jobs.drain(called)
    else:
        getattr(cluster.workers, order)(called, cluster.incarnations[called])
    assert cluster.tickets == [called, other]
    assert cluster.claim(called) is None
    assert cluster.taken(other) == "a"


def test_a_suspended_worker_is_called_again_when_it_registers(cluster: Cluster) -> None:
    cluster.join("w")
    cluster.workers.suspend("w", "life-of-w")
    cluster.submit("a")
    assert cluster.tickets == []
    cluster.join("w")
    assert cluster.answer_tickets() == ["a"]


def test_only_the_present_life_of_a_worker_can_suspend_it(cluster: Cluster) -> None:
    cluster.join("w")
    cluster.workers.suspend("w", "another life")
    cluster.workers.leave("w", "another life")
    cluster.submit("a")
    assert cluster.answer_tickets() == ["a"]


def test_a_worker_that_leaves_gives_back_without_an_attempt_and_is_buried_by_the_next_tick(cluster: Cluster) -> None:
    cluster.join("w")
    cluster.submit("a")
    cluster.take("w")
    cluster.workers.leave("w", "life-of-w")
    assert cluster.jobs.item_states("a")[0].attempts == 0
    assert cluster.jobs.item_states("a")[0].state == "pending"
    assert cluster.workers.workers() == [], "not even as lost: no reaper may tick before the servers have ended and come back"
    assert cluster.reap().gone == ("w",)
    assert cluster.workers.workers() == []
    cluster.join("w", incarnation="its next life")
    assert [worker.state for worker in cluster.workers.workers()] == ["ticketed"]


def test_a_name_that_is_reserved_is_that_of_a_worker_that_starts(cluster: Cluster) -> None:
    assert cluster.workers.starting() == []
    assert cluster.workers.reserve_name("pc1-cuda0") and cluster.workers.reserve_name("b") and not cluster.workers.reserve_name("b")
    assert cluster.workers.starting() == ["b", "pc1-cuda0"]
    cluster.join("b")
    cluster.workers.release_name("pc1-cuda0")
    assert cluster.workers.starting() == []


# -- owners -------------------------------------------------------------------------------------------------------------
def test_a_job_without_an_owner_is_parked_and_runs_on_when_the_owner_is_back(cluster: Cluster) -> None:
    cluster.join("w")
    cluster.submit("a", items=2)
    claim = cluster.take("w")
    cluster.disown("a")
    cluster.reap()
    assert cluster.jobs.wait_events("a", "0", 0)[1][-1].kind == "job"
    assert cluster.jobs.job_state("a").state == "parked"
    assert cluster.complete("w", claim)
    assert cluster.tickets == []
    assert cluster.claim("w") is None
    cursor, _ = cluster.jobs.wait_events("a", "", 0)
    assert cluster.jobs.own("a", OWNER)
    assert [event.kind for event in cluster.jobs.wait_events("a", cursor, 0)[1]] == ["job"]
    assert cluster.jobs.job_state("a").state == "running"
    assert cluster.answer_tickets() == ["a"]


def test_a_parked_job_is_cancelled_when_nobody_comes(new_cluster: OpenCluster) -> None:
    cluster = new_cluster(ownerless_ttl_s=0)
    cluster.submit("a")
    cluster.disown("a")
    cluster.reap()
    assert cluster.jobs.job_state("a").state == "parked"
    cluster.client.hincrby(cluster.key("job", "a"), "parked", -1)
    cluster.reap()
    state = cluster.jobs.job_state("a")
    assert (state.state, state.reason) == ("cancelled", "its owner disappeared")


def test_an_owner_keeps_others_out_while_its_lease_runs(cluster: Cluster) -> None:
    cluster.submit("a")
    assert not cluster.jobs.own("a", "other")
    cluster.disown("a")
    assert cluster.jobs.own("a", "other")
    assert not cluster.jobs.own("a", OWNER)
    assert cluster.jobs.owner("a") == "other"


def test_an_owner_can_only_give_back_its_own_lease(cluster: Cluster) -> None:
    cluster.submit("a")
    cluster.jobs.disown("a", "other")
    assert cluster.jobs.owner("a") == OWNER
    cluster.jobs.disown("a", OWNER)
    assert cluster.jobs.owner("a") == ""


def test_nobody_owns_an_unknown_job(cluster: Cluster) -> None:
    assert not cluster.jobs.own("nothing", OWNER)
    assert cluster.client.keys("*nothing*") == []


def test_a_paused_job_that_was_parked_is_still_paused_when_its_owner_is_back(cluster: Cluster) -> None:
    cluster.join("w")
    cluster.submit("a")
    cluster.tickets.clear()
    cluster.jobs.pause("a")
    cluster.disown("a")
    cluster.reap()
    cluster.jobs.own("a", OWNER)
    assert cluster.jobs.job_state("a").state == "paused"
    assert cluster.claim("w") is None


# -- registering --------------------------------------------------------------------------------------------------------
def test_a_claim_of_an_unregistered_worker_says_that_it_must_register(cluster: Cluster) -> None:
    with pytest.raises(WorkerLost):
        cluster.workers.claim("nobody", "x", "c1")
