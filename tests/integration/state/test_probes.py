"""A job for one worker alone: nobody else gets it, nothing else waits for it, and nothing of it stays."""
from __future__ import annotations

import pytest

from distributed_comfy.state.probes import ProbeTable
from tests.integration.state.test_nothing_left_behind import lasting
from tests.state_audit import snapshot
from tests.state_cluster import PREFIX, Cluster

NEEDS = ("doctor-probe",)
SIGNATURE = "sig-doctor-probe"


@pytest.fixture
def probes(cluster: Cluster) -> ProbeTable:
    return ProbeTable(cluster.client, PREFIX, cluster.tickets.extend)


def test_only_the_pinned_one_of_equal_workers_is_called_and_gets_it(cluster: Cluster, probes: ProbeTable) -> None:
    cluster.join("v", "w", "x")
    cluster.submit("a", needs=NEEDS)
    assert cluster.tickets == [], "no worker has what it needs"
    assert probes.pin(SIGNATURE, "w")
    assert cluster.tickets == ["w"]
    assert cluster.claim("v") is None and cluster.claim("x") is None
    assert cluster.taken("w") == "a"


def test_pinned_twice_is_pinned_once(cluster: Cluster, probes: ProbeTable) -> None:
    cluster.join("v", "w")
    cluster.submit("a", needs=NEEDS)
    assert probes.pin(SIGNATURE, "w") and probes.pin(SIGNATURE, "w")
    assert cluster.tickets == ["w"]


def test_a_worker_that_describes_itself_anew_is_called_when_it_is_pinned_again(cluster: Cluster, probes: ProbeTable) -> None:
    cluster.join("v", "w")
    cluster.submit("a", needs=NEEDS)
    probes.pin(SIGNATURE, "w")
    cluster.join("w", has=("Sampler", "Another"))
    assert cluster.claim("w") is None, "what it was pinned as is gone"
    assert probes.pin(SIGNATURE, "w")
    assert cluster.claim("v") is None and cluster.taken("w") == "a"


def test_each_worker_can_be_tried_at_the_same_time(cluster: Cluster, probes: ProbeTable) -> None:
    cluster.join("v", "w")
    for job, worker in (("a", "v"), ("b", "w")):
        cluster.submit(job, needs=(f"probe-{job}",))
        assert probes.pin(f"sig-probe-{job}", worker)
    assert {worker: cluster.taken(worker) for worker in ("w", "v")} == {"v": "a", "w": "b"}


def test_other_work_goes_on_and_goes_first(cluster: Cluster, probes: ProbeTable) -> None:
    cluster.join("v", "w")
    cluster.submit("probe", needs=NEEDS, priority=0)
    probes.pin(SIGNATURE, "w")
    cluster.submit("a", items=2, priority=5)
    assert cluster.taken("w") == "a" and cluster.taken("v") == "a"


def test_a_worker_that_is_not_there_cannot_be_pinned(cluster: Cluster, probes: ProbeTable) -> None:
    cluster.join("v")
    cluster.submit("a", needs=NEEDS)
    assert not probes.pin(SIGNATURE, "nobody")
    assert not probes.pin("sig-of-nothing", "v")


def test_nothing_stays_of_a_job_that_is_forgotten(cluster: Cluster, probes: ProbeTable) -> None:
    cluster.join("v", "w")
    cluster.submit("before")
    cluster.answer_tickets(1000)
    before, keys = lasting(cluster), set(snapshot(cluster.client))
    cluster.submit("a", needs=NEEDS)
    probes.pin(SIGNATURE, "w")
    assert not probes.forget("a"), "it has not ended"
    cluster.complete("w", cluster.take("w"), 5000)
    inflight = int(cluster.client.get(cluster.key("inflight")))
    assert probes.forget("a") and probes.forget("a")
    assert set(snapshot(cluster.client)) - keys == set()
    assert lasting(cluster) == before
    assert set(cluster.jobs.jobs()) == {"before"}
    assert int(cluster.client.get(cluster.key("inflight"))) == inflight - 5000


def test_a_cancelled_one_is_forgotten_and_its_late_result_refused(cluster: Cluster, probes: ProbeTable) -> None:
    cluster.join("v", "w")
    cluster.submit("a", needs=NEEDS)
    probes.pin(SIGNATURE, "w")
    claim = cluster.take("w")
    cluster.jobs.cancel("a", "too slow")
    assert probes.forget("a")
    assert not cluster.complete("w", claim)
    cluster.submit("b")
    assert cluster.taken("w") == "b"
    assert cluster.jobs.jobs().keys() == {"b"}
