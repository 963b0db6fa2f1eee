"""A job that enters the table with items which an earlier job finished: they are done, fetched and counted, and nothing of them runs."""
from __future__ import annotations

import json
from dataclasses import replace

from distributed_comfy.state.jobs import FinishedItem
from tests.state_audit import Audit
from tests.state_cluster import OWNER, Cluster, Job, result_of, submission


def enter(cluster: Cluster, job: Job, *finished: int, size_bytes: int = 100) -> None:
    items = tuple(FinishedItem(index, f"old-{index}", result_of(size_bytes)) for index in finished)
    cluster.jobs.submit(replace(submission("a", job), finished=items), OWNER)


def test_only_the_other_items_run(cluster: Cluster) -> None:
    cluster.join("w")
    enter(cluster, Job(items=5), 0, 3)
    Audit(cluster).check()
    states = cluster.jobs.item_states("a")
    assert [states[index].state for index in range(5)] == ["done", "pending", "pending", "done", "pending"]
    assert (states[3].claim_id, cluster.jobs.result("a", 3)) == ("old-3", ("old-3", result_of(100)))
    assert [cluster.take("w").index] == [1]
    assert cluster.jobs.job_state("a").counts == {"total": 5, "running": 1, "done": 2, "failed": 0, "pending": 2}


def test_the_job_is_done_with_its_last_other_item(cluster: Cluster) -> None:
    cluster.join("w")
    enter(cluster, Job(items=3), 0, 2)
    assert cluster.work("w", 100) == "a"
    assert cluster.jobs.job_state("a").state == "done"
    Audit(cluster).check()


def test_they_are_not_in_flight_but_their_size_is_known(cluster: Cluster) -> None:
    cluster.join("w")
    enter(cluster, Job(items=9), 4, size_bytes=1000)
    assert (cluster.jobs.unfetched("a"), cluster.number("a", "largest")) == (0, 1000)
    cluster.jobs.mark_fetched("a", 4, "old-4")
    assert cluster.jobs.unfetched("a") == 0
    Audit(cluster).check()


def test_a_job_of_finished_items_alone_is_done_at_once(cluster: Cluster) -> None:
    cluster.join("w")
    enter(cluster, Job(items=2), 0, 1)
    assert cluster.jobs.job_state("a").state == "done" and cluster.claim("w") is None and cluster.tickets == []
    _, events = cluster.jobs.wait_events("a", "0", 0)
    assert [event.kind for event in events] == ["job"]
    Audit(cluster).check()


def test_the_last_stage_waits_as_ever(cluster: Cluster) -> None:
    cluster.join("w")
    enter(cluster, Job(items=2, last_needs=("Sampler",)), 0, 1)
    assert cluster.jobs.item_states("a")[2].state == "blocked" and cluster.claim("w") is None
    assert cluster.jobs.unblock("a", [(2, "{}")])
    assert cluster.take("w").index == 2
    Audit(cluster).check()


def test_one_whose_blob_proves_damaged_runs_again(cluster: Cluster) -> None:
    cluster.join("w")
    enter(cluster, Job(items=2), 0, 1)
    assert cluster.jobs.reopen("a", 1, "old-1")
    assert (cluster.jobs.job_state("a").state, cluster.take("w").index) == ("running", 1)
    Audit(cluster).check()


def test_celery_hears_of_them_and_a_second_call_changes_nothing(cluster: Cluster) -> None:
    cluster.join("w")
    enter(cluster, Job(items=2), 1)
    meta = json.loads(cluster.client.get(cluster.scripts.keys.celery_meta("a-1")))
    assert (meta["status"], meta["task_id"]) == ("SUCCESS", "a-1")
    claim = cluster.take("w")
    enter(cluster, Job(items=2), 0, 1)
    assert cluster.jobs.item_states("a")[0].claim_id == claim.claim_id
    Audit(cluster).check()
