"""A guest: a master that takes items of its own job, is called for nothing, and counts for nobody's plan."""
from __future__ import annotations

import pytest

from distributed_comfy.errors import WorkerLost, WorkerNameTaken
from tests.integration.state.conftest import OpenCluster
from tests.state_cluster import Cluster

MIB = 2**20


def test_a_guest_takes_items_of_the_job_it_names_alone(cluster: Cluster) -> None:
    cluster.submit("older", items=2, priority=9)
    cluster.submit("mine", items=2)
    cluster.join_guest("g")
    for index in range(2):
        claim = cluster.take_of("g", "mine")
        assert (claim.job_id, claim.index, claim.attempt) == ("mine", index, 1)
        assert cluster.complete("g", claim)
    assert cluster.claim_of("g", "mine") is None
    assert cluster.jobs.job_state("mine").state == "done"
    assert cluster.jobs.job_state("older").counts["pending"] == 2


def test_without_a_job_a_guest_gets_nothing(cluster: Cluster) -> None:
    cluster.submit("a")
    cluster.join_guest("g")
    assert cluster.claim("g") is None


def test_a_guest_is_never_called(cluster: Cluster) -> None:
    cluster.join_guest("g")
    cluster.submit("a", items=5)
    cluster.renew("g")
    cluster.reap()
    assert cluster.tickets == []
    cluster.join("w")
    cluster.answer_tickets()
    assert cluster.sent >= 5
    assert "g" not in cluster.tickets


def test_a_guest_is_not_among_the_live_workers_and_their_capabilities(cluster: Cluster) -> None:
    cluster.join("w")
    cluster.join_guest("g")
    assert list(cluster.jobs._matching.live()) == ["w"]
    assert [worker.facts.name for worker in cluster.workers.workers()] == ["w"]


def test_an_item_that_the_last_worker_lacks_fails_although_a_guest_lives(cluster: Cluster) -> None:
    """Whoever submitted the job is told; a guest may go at any time."""
    cluster.join("w")
    cluster.join_guest("g")
    cluster.submit("a")
    assert cluster.give_back("w", cluster.take("w"), "lacks") == "failed"


def test_the_same_claim_gets_the_same_item_and_a_guest_has_one_at_a_time(new_cluster: OpenCluster) -> None:
    cluster = new_cluster(slots=3)
    cluster.submit("a", items=3)
    cluster.join_guest("g")
    first = cluster.take_of("g", "a", "c1")
    assert cluster.take_of("g", "a", "c1") == first
    assert cluster.claim_of("g", "a", "c2") is None


def test_given_back_items_come_first_and_a_last_stage_never(cluster: Cluster) -> None:
    cluster.join("w")
    cluster.join_guest("g")
    cluster.submit("a", items=2, last_needs=("Sampler",))
    cluster.give_back("w", cluster.take("w"))
    for index in (0, 1):
        claim = cluster.take_of("g", "a")
        assert claim.index == index
        cluster.complete("g", claim)
    cluster.unblock("a", 2)
    assert cluster.claim_of("g", "a") is None
    assert cluster.take("w").index == 2


def test_what_a_guest_leaves_to_workers_it_never_gets_and_the_others_it_does(cluster: Cluster) -> None:
    cluster.submit("a", items=140)
    cluster.join_guest("g")
    leaves = [*range(70), 139]  # more than are looked at together
    cluster.give_back("g", cluster.take_of("g", "a"))  # 0 stands before all others now
    taken = []
    while claim := cluster.claim_of("g", "a", leaves=leaves):
        taken.append(claim.index)
        assert cluster.complete("g", claim)
    assert taken == list(range(70, 139))
    cluster.join("w")
    assert cluster.take("w").index == 0
    assert cluster.jobs.job_state("a").counts["pending"] == 70


def test_tiles_go_to_guests_too(cluster: Cluster) -> None:
    cluster.join_guest("g")
    cluster.submit("a", items=1, grows=True)
    cluster.complete("g", cluster.take_of("g", "a"))
    assert cluster.extend("a", 1, 2)
    assert cluster.unblock("a", 2)
    assert cluster.take_of("g", "a").index == 2


@pytest.mark.parametrize("hold", ["pause", "park"])
def test_a_held_job_gives_a_guest_nothing(cluster: Cluster, hold: str) -> None:
    cluster.join_guest("g")
    cluster.submit("a")
    if hold == "pause":
        cluster.jobs.pause("a")
    else:
        cluster.disown("a")
        cluster.reap()
    assert cluster.claim_of("g", "a") is None


def test_byte_caps_hold_for_a_guest(new_cluster: OpenCluster) -> None:
    cluster = new_cluster(job_bytes_in_flight=2 * MIB)
    cluster.join_guest("g")
    cluster.submit("a", items=3)
    claims = []
    for _ in range(2):
        claims.append(cluster.take_of("g", "a"))
        cluster.complete("g", claims[-1], MIB)
    assert cluster.claim_of("g", "a") is None
    cluster.jobs.mark_fetched("a", claims[0].index, claims[0].claim_id)
    assert cluster.take_of("g", "a").index == 2


def test_the_item_of_a_guest_whose_lease_ended_runs_elsewhere(cluster: Cluster) -> None:
    cluster.join("w")
    cluster.join_guest("g")
    cluster.submit("a")
    old = cluster.take_of("g", "a")
    cluster.claim("w")
    cluster.expire("g")
    assert cluster.reap().gone == ()
    assert cluster.tickets == ["w"]
    again = cluster.take("w")
    assert (again.job_id, again.index, again.attempt) == ("a", 0, 2)
    assert not cluster.complete("g", old)
    with pytest.raises(WorkerLost):
        cluster.claim_of("g", "a")
    assert not cluster.renew("g", old.claim_id).alive


def test_what_a_guest_holds_no_more_goes_back(cluster: Cluster) -> None:
    cluster.join("w")
    cluster.join_guest("g")
    cluster.submit("a")
    cluster.claim("w", "none")
    claim = cluster.jobs.item_states("a")[0]
    assert claim.worker == "w"
    cluster.submit("b")
    held = cluster.take_of("g", "b")
    assert cluster.renew("g", held.claim_id).lost == ()
    cluster.renew("g")
    cluster.renew("g")
    assert cluster.jobs.item_states("b")[0].state == "pending"


def test_a_guest_that_leaves_gives_back_what_it_has_and_uses_up_no_attempt(cluster: Cluster) -> None:
    cluster.join_guest("g")
    cluster.submit("a")
    cluster.take_of("g", "a")
    cluster.workers.leave("g", "life-of-g")
    cluster.reap()
    cluster.join("w")
    assert cluster.take("w").attempt == 1


def test_a_second_guest_of_a_live_name_is_refused(cluster: Cluster) -> None:
    cluster.join_guest("g")
    with pytest.raises(WorkerNameTaken):
        cluster.join_guest("g", incarnation="another")
    with pytest.raises(WorkerNameTaken):
        cluster.join("g", incarnation="a worker")


def test_a_name_may_be_a_worker_after_it_was_a_guest_and_the_other_way_round(cluster: Cluster) -> None:
    cluster.join_guest("g")
    cluster.join("g", incarnation="life-of-g")
    cluster.submit("a")
    assert cluster.tickets == ["g"]
    cluster.join_guest("g")
    assert cluster.claim("g") is None
    assert cluster.take_of("g", "a").index == 0
