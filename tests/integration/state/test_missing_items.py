"""Jobs that can do without items that failed for good: they go on, and end with what is there."""
from __future__ import annotations

import pytest

from distributed_comfy.errors import JobStateInvalid, WorkerLacks
from tests.state_audit import Audit
from tests.state_cluster import Cluster


def states(cluster: Cluster, job: str = "j") -> list[str]:
    return [state.state for state in cluster.jobs.item_states(job).values()]


def fail(cluster: Cluster, index: int) -> None:
    """Work until this item is claimed, and let that fail for good."""
    while (claim := cluster.take("a")).index != index:
        cluster.complete("a", claim)
    assert cluster.give_back("a", claim, "final") == "failed"


@pytest.fixture
def tolerant(cluster: Cluster) -> Cluster:
    cluster.join("a", has=("Sampler", "Saver"))
    cluster.submit("j", items=3, last_needs=("Saver",), spare="all")
    return cluster


def test_the_others_go_on_and_the_last_stage_runs(tolerant: Cluster) -> None:
    fail(tolerant, 1)
    assert tolerant.jobs.job_state("j").state == "running" and states(tolerant) == ["done", "failed", "pending", "blocked"]
    assert tolerant.tickets, "somebody is called for what is left"
    Audit(tolerant).check()
    tolerant.work("a")
    assert tolerant.jobs.unblock("j", [(3, "{}")])
    tolerant.work("a")
    assert tolerant.jobs.job_state("j").state == "done" and states(tolerant) == ["done", "failed", "done", "done"]
    assert tolerant.jobs.item_states("j")[1].error is not None, "what is missing says why"
    Audit(tolerant).check()


def test_a_job_without_a_last_stage_is_done_with_the_last_item_that_can_be(cluster: Cluster) -> None:
    cluster.join("a")
    cluster.submit("j", items=3, spare="all")
    for index in (1, 2):
        fail(cluster, index)
    assert cluster.jobs.job_state("j").state == "done" and states(cluster) == ["done", "failed", "failed"]
    Audit(cluster).check()


def test_a_job_of_which_nothing_is_left_fails(tolerant: Cluster) -> None:
    for index in (0, 1, 2):
        assert tolerant.jobs.job_state("j").state in ("pending", "running")
        fail(tolerant, index)
    assert tolerant.jobs.job_state("j").state == "failed"
    Audit(tolerant).check()


def test_the_item_that_the_last_stage_takes_values_from_must_not_fail(cluster: Cluster) -> None:
    cluster.join("a", has=("Sampler", "Saver"))
    cluster.submit("j", items=3, last_needs=("Saver",), spare="others")
    fail(cluster, 0)
    assert cluster.jobs.job_state("j").state == "failed"
    Audit(cluster).check()


def test_neither_must_the_last_stage(tolerant: Cluster) -> None:
    for _ in range(3):
        tolerant.work("a")
    tolerant.jobs.unblock("j", [(3, "{}")])
    fail(tolerant, 3)
    assert tolerant.jobs.job_state("j").state == "failed"


def test_the_error_of_a_failed_job_is_the_one_that_it_failed_with(tolerant: Cluster) -> None:
    fail(tolerant, 1)
    tolerant.work("a")
    tolerant.jobs.unblock("j", [(3, "{}")])
    fail(tolerant, 3)
    state = tolerant.jobs.job_state("j")
    assert state.fatal == 3 and state.error is not None and state.error["index"] == 3


def test_a_job_that_nobody_is_left_to_run_fails_at_once(tolerant: Cluster) -> None:
    claim = tolerant.take("a")
    assert tolerant.give_back("a", claim, "lacks", WorkerLacks(worker="a", lacks="x")) == "failed"
    assert tolerant.jobs.job_state("j").state == "failed", "the other items would wait for ever"
    Audit(tolerant).check()


def test_a_failure_that_is_reported_twice_counts_once(tolerant: Cluster) -> None:
    claim = tolerant.take("a")
    assert [tolerant.give_back("a", claim, "final") for _ in range(2)] == ["failed", "lost"]
    assert tolerant.jobs.job_state("j").counts["failed"] == 1
    Audit(tolerant).check()


def test_a_result_that_cannot_be_fetched_in_the_end_is_missing_too(tolerant: Cluster) -> None:
    for _ in range(3):
        tolerant.work("a")
    while (item := tolerant.jobs.item_states("j")[0]).state == "done":
        tolerant.jobs.reopen("j", 0, item.claim_id)
        tolerant.work("a")
    assert item.state == "failed" and tolerant.jobs.job_state("j").state == "running"
    Audit(tolerant).check()


def test_retry_runs_what_was_missing_and_then_the_last_stage(tolerant: Cluster) -> None:
    fail(tolerant, 1)
    tolerant.work("a")
    tolerant.jobs.unblock("j", [(3, '{"old": "feed"}')])
    fail(tolerant, 3)
    for _ in range(2):  # a second time changes nothing
        tolerant.jobs.retry("j")
        assert states(tolerant) == ["done", "pending", "done", "blocked"], "its feed lacks item 1"
    Audit(tolerant).check()
    tolerant.work("a")
    assert tolerant.jobs.unblock("j", [(3, "{}")])
    tolerant.work("a")
    assert tolerant.jobs.job_state("j").state == "done"
    with pytest.raises(JobStateInvalid):
        tolerant.jobs.retry("j")
    Audit(tolerant).check()


def test_a_cancelled_job_with_gaps_and_a_last_stage_on_offer_is_retried_from_the_gaps(tolerant: Cluster) -> None:
    fail(tolerant, 2)
    tolerant.jobs.unblock("j", [(3, "{}")])
    tolerant.jobs.cancel("j", "enough")
    tolerant.jobs.retry("j")
    assert states(tolerant) == ["done", "done", "pending", "blocked"]
    Audit(tolerant).check()
