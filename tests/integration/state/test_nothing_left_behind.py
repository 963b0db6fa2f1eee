"""What stays in Redis after a job: only keys that expire."""
from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from distributed_comfy.errors import EngineDied, JobUnknown, WorkerLacks
from distributed_comfy.messages import ItemResult
from distributed_comfy.state.records import Claim
from tests.integration.state.conftest import OpenCluster
from tests.state_cluster import Cluster

MIB = 2**20
COUNTERS = {"jobs", "ended", "sequence", "served", "inflight", "reaper-facts", "tallies"}
"""One key each for the whole cluster, whatever it has run."""


def lasting(cluster: Cluster) -> set[str]:
    """Keys without an expiry, the few counters left out."""
    keys = [key for key in cluster.client.scan_iter() if cluster.client.ttl(key) == -1]
    return {key.removeprefix("dc:") for key in keys} - COUNTERS


def finish(cluster: Cluster) -> None:
    while cluster.tickets:
        cluster.answer_tickets(MIB)
        for index, item in cluster.jobs.item_states("a").items():
            if item.state == "done":
                cluster.jobs.mark_fetched("a", index, item.claim_id)
    if cluster.jobs.unblock("a", [(4, "{}")]):
        cluster.answer_tickets()
    cluster.jobs.settle("a")
    assert cluster.jobs.job_state("a").state == "done"


def fail(cluster: Cluster) -> None:
    cluster.work("v", MIB)
    cluster.take("v")
    cluster.give_back("w", cluster.take("w"), "final")


def cancel(cluster: Cluster) -> None:
    cluster.work("v", MIB)
    cluster.take("v")
    for _ in range(2):
        cluster.give_back("w", cluster.take("w"), "retry", EngineDied(status="9", log_tail=""))
    cluster.jobs.cancel("a", "enough")


def cancel_while_the_last_stage_backs_off(cluster: Cluster) -> None:
    cluster.answer_tickets()
    cluster.jobs.unblock("a", [(4, "{}")])
    for _ in range(2):
        cluster.give_back("w", cluster.take("w"), "retry", EngineDied(status="9", log_tail=""))
    cluster.jobs.cancel("a", "enough")


def be_abandoned(cluster: Cluster) -> None:
    cluster.work("v", MIB)
    cluster.disown("a")
    cluster.reap()
    cluster.client.hincrby(cluster.key("job", "a"), "parked", -10)
    cluster.reap()
    assert cluster.jobs.job_state("a").state == "cancelled"


def lack_everywhere(cluster: Cluster) -> None:
    for name in ("v", "w"):
        cluster.give_back(name, cluster.take(name), "lacks", WorkerLacks(worker=name, lacks="x"))
    assert cluster.jobs.job_state("a").state == "failed"


def be_retried_reopened_and_paused(cluster: Cluster) -> None:
    cancel(cluster)
    cluster.jobs.retry("a")
    cluster.jobs.pause("a")
    cluster.jobs.resume("a")
    claim = cluster.take("w")
    cluster.complete("w", claim, MIB)
    cluster.jobs.reopen("a", claim.index, claim.claim_id)
    cluster.end_backoff()
    cluster.reap()
    finish(cluster)


def finish_with_tiles(cluster: Cluster) -> None:
    cluster.submit("t", items=1, prepare=True, grows=True)
    cluster.answer_tickets(MIB)
    cluster.unblock("t", 1)
    cluster.answer_tickets(MIB)
    cluster.extend("t", 2, 3, finished=(4,))
    cluster.unblock("t", 2, 3)
    finish(cluster)
    assert cluster.jobs.job_state("t").state == "done"
    cluster.jobs.settle("t")


ENDS = [
    finish,
    finish_with_tiles,
    fail,
    cancel,
    cancel_while_the_last_stage_backs_off,
    be_abandoned,
    lack_everywhere,
    be_retried_reopened_and_paused,
]


@pytest.mark.parametrize("slots", [1, 3])
@pytest.mark.parametrize("end", ENDS)
def test_an_ended_job_leaves_only_keys_that_expire(new_cluster: OpenCluster, end: Callable[[Cluster], None], slots: int) -> None:
    cluster = new_cluster(slots=slots, ownerless_ttl_s=0, retry_backoff_s=1000)
    cluster.join("v", "w")
    before = lasting(cluster)
    cluster.submit("a", items=4, last_needs=("Sampler",))
    end(cluster)
    for job_id in cluster.jobs.jobs():
        cluster.disown(job_id)
    cluster.end_backoff()
    cluster.reap()
    while cluster.tickets:
        cluster.claim(cluster.tickets[0])
    assert lasting(cluster) == before
    assert cluster.client.get(cluster.key("inflight")) in (None, "0")
    for key in cluster.client.keys("dc:job:*") + cluster.client.keys("dc:celery-task-meta-*"):
        assert 0 < cluster.client.ttl(key) <= cluster.settings.job_ttl_s, key


def test_late_words_about_a_job_that_is_gone_leave_nothing(cluster: Cluster) -> None:
    cluster.join("w")
    cluster.submit("a", items=2)
    claim = cluster.take("w")
    cluster.jobs.cancel("a", "enough")
    cluster.client.delete(*cluster.client.keys("dc:job:a*"), *cluster.client.keys("dc:celery*"))
    cluster.client.zadd(cluster.key("ended"), {"a": 0})
    cluster.reap()
    before = set(cluster.client.keys())
    assert not cluster.complete("w", claim, MIB)
    for how in ("release", "retry", "lacks", "final"):
        assert cluster.give_back("w", claim, how) == "lost"  # type: ignore[arg-type]
    assert cluster.renew("w", claim.claim_id).lost == (claim.claim_id,)
    cluster.jobs.mark_fetched("a", 0, claim.claim_id)
    cluster.jobs.settle("a")
    cluster.jobs.disown("a", "owner")
    assert not cluster.jobs.own("a", "owner")
    assert not cluster.jobs.unblock("a", [(1, "{}")])
    for order in (cluster.jobs.pause, cluster.jobs.retry, lambda job: cluster.jobs.cancel(job, "x"), cluster.jobs.job_state):
        with pytest.raises(JobUnknown):
            order("a")
    assert set(cluster.client.keys()) <= before


def test_a_busy_cluster_leaves_nothing_when_everyone_has_gone(new_cluster: OpenCluster) -> None:
    cluster = new_cluster(slots=3, retry_backoff_s=0)
    choose = random.Random(7)
    names = ["u", "v", "w"]
    cluster.join(*names, has=("A", "B"))
    held: list[tuple[str, Claim]] = []
    for k in range(60):
        needs = (choose.choice("AB"),)
        cluster.submit(f"j{k}", items=choose.randint(1, 3), needs=needs, submitter=f"user{k % 5}", priority=choose.randint(0, 9))
        while cluster.tickets and choose.random() < 0.7:
            name = choose.choice(cluster.tickets)
            claim = cluster.claim(name)
            held += [(name, claim)] if claim else []
        for name, claim in [held.pop() for _ in range(len(held) // 2)]:
            if choose.random() < 0.5:
                cluster.workers.complete(name, cluster.incarnations[name], claim, ItemResult())
            else:
                error = EngineDied(status="9", log_tail="")
                cluster.give_back(name, claim, choose.choice(["release", "retry", "lacks", "final"]), error)  # type: ignore[arg-type]
    for job, state in cluster.jobs.jobs().items():
        if not state.ended:
            cluster.jobs.cancel(job, "enough")
    for name in names:
        cluster.expire(name)
    cluster.reap()
    assert lasting(cluster) == set()
