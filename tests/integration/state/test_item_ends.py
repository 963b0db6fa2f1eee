"""How items end and come back: results, errors by class, attempts, workers that lack something, last stages, lost blobs."""
from __future__ import annotations

import json
import threading
from types import SimpleNamespace
from typing import cast

import pytest

from distributed_comfy.errors import EngineDied, OutOfMemory, ValidationRefused, WorkerLacks
from distributed_comfy.messages import Capture, ItemResult, TensorRef
from distributed_comfy.state.records import Claim
from distributed_comfy.transport.memory_blobs import MemoryBlobStore
from tasks.run_item import enter_result
from tasks.runtime import WorkerRuntime
from tests.integration.state.conftest import OpenCluster
from tests.state_cluster import Cluster, result_of

DIED = EngineDied(status="signal 9", log_tail="")
OUT_OF_MEMORY = OutOfMemory(device="cuda:0", node_id="3", exception_message="")
LACKS = WorkerLacks(worker="v", lacks="model.safetensors")
REFUSED = ValidationRefused(details="Required input is missing: strength", error=None, node_errors={})


def heard(cluster: Cluster, name: str) -> dict[str, object]:
    """The task meta under this item id, as Celery's clients read it."""
    return dict(json.loads(cluster.client.get(cluster.scripts.keys.celery_meta(name)) or "{}"))


# -- done ---------------------------------------------------------------------------------------------------------------
def test_a_result_is_kept_with_its_claim_and_announced_to_celery(cluster: Cluster) -> None:
    cluster.join("w")
    cluster.submit("a", items=2)
    claim = cluster.take("w")
    meta_key = cluster.scripts.keys.celery_meta("a-0")
    with cluster.client.pubsub(ignore_subscribe_messages=True) as channel:
        channel.subscribe(meta_key)
        channel.get_message(timeout=1)
        assert cluster.complete("w", claim, 100)
        message = channel.get_message(timeout=1)
    assert message is not None
    assert message["data"] == cluster.client.get(meta_key)
    assert heard(cluster, "a-0")["status"] == "SUCCESS"
    assert heard(cluster, "a-0")["task_id"] == "a-0"
    assert 0 < cluster.client.ttl(meta_key) <= cluster.settings.job_ttl_s
    assert cluster.jobs.result("a", 0) == (claim.claim_id, result_of(100))
    assert cluster.jobs.result("a", 1) is None


def test_a_job_is_done_with_its_last_item_and_says_so_once(cluster: Cluster) -> None:
    cluster.join("w")
    cluster.submit("a", items=2)
    cluster.work("w")
    claim = cluster.take("w")
    assert cluster.complete("w", claim)
    assert cluster.complete("w", claim)
    _, events = cluster.jobs.wait_events("a", "0", 0)
    assert [event.kind for event in events] == ["claimed", "done", "claimed", "done", "job"]
    assert cluster.jobs.job_state("a").counts["done"] == 2


def test_a_late_result_of_a_lost_claim_is_refused(cluster: Cluster) -> None:
    cluster.join("v", "w")
    cluster.submit("a")
    slow = cluster.take("v")
    cluster.expire("v")
    cluster.reap()
    fast = cluster.take("w")
    assert not cluster.complete("v", slow)
    assert cluster.complete("w", fast)
    assert not cluster.complete("v", slow)
    assert cluster.jobs.result("a", 0) == (fast.claim_id, result_of(0))


def test_a_refused_result_takes_its_own_blobs_along_and_no_others(cluster: Cluster) -> None:
    blobs = MemoryBlobStore()

    def enter(worker: str, claim: Claim) -> bool:
        blob = blobs.put(claim.claim_id, [bytes(40)], size_bytes=40, job_id=claim.job_id)
        value = TensorRef(blob, "float32", (10,), 40)
        ours = SimpleNamespace(workers=cluster.workers, blobs=blobs)
        runtime = SimpleNamespace(name=worker, cluster=ours, stopped=False, draining=threading.Event())
        result = ItemResult(captures=(Capture("9", "images", 0, value),), worker=worker)
        return enter_result(cast(WorkerRuntime, runtime), cluster.incarnations[worker], claim, result)

    cluster.join("v", "w")
    cluster.submit("a")
    slow = cluster.take("v")
    cluster.expire("v")
    cluster.reap()
    fast = cluster.take("w")
    assert [enter("v", slow), enter("w", fast), enter("v", slow)] == [False, True, False]
    assert blobs.exists([blobs.blob_id(claim.claim_id, 40) for claim in (slow, fast)]) == [False, True]


def test_a_result_counts_while_the_lease_has_run_out_and_nobody_has_noticed(cluster: Cluster) -> None:
    cluster.join("w")
    cluster.submit("a")
    claim = cluster.take("w")
    cluster.expire("w")
    assert cluster.complete("w", claim)
    assert cluster.reap().gone == ("w",)
    assert cluster.jobs.job_state("a").state == "done"


def test_the_owner_is_woken_by_whatever_happens_to_an_item(new_cluster: OpenCluster) -> None:
    cluster = new_cluster(max_attempts=2)
    cluster.join("w")
    cluster.submit("a", items=1, last_needs=("Sampler",))
    claims = [cluster.take("w", "c1")]
    cluster.give_back("w", claims[0])
    claims.append(cluster.take("w", "c2"))
    cluster.complete("w", claims[1])
    cluster.jobs.reopen("a", 0, "c2")
    cluster.jobs.pause("a")
    cluster.jobs.resume("a")
    claims.append(cluster.take("w", "c3"))
    cluster.give_back("w", claims[2], "final")
    cursor, events = cluster.jobs.wait_events("a", "0", 0)
    assert [(event.kind, event.index, event.claim_id) for event in events] == [
        ("claimed", 0, "c1"),
        ("released", 0, "c1"),
        ("claimed", 0, "c2"),
        ("done", 0, "c2"),
        ("released", 0, "c2"),
        ("job", -1, ""),
        ("job", -1, ""),
        ("claimed", 0, "c3"),
        ("failed", 0, "c3"),
        ("job", -1, ""),
    ]
    assert cluster.jobs.wait_events("a", cursor, 0) == (cursor, [])
    assert cluster.jobs.wait_events("a", "", 0) == (cursor, [])
    cluster.jobs.retry("a")
    assert [event.kind for event in cluster.jobs.wait_events("a", cursor, 0)[1]] == ["job"]


# -- given back ---------------------------------------------------------------------------------------------------------
def test_a_release_uses_up_no_attempt(cluster: Cluster) -> None:
    cluster.join("w")
    cluster.submit("a")
    for _ in range(10):
        claim = cluster.take("w")
        assert claim.attempt == 1
        assert cluster.give_back("w", claim) == "ok"
    assert cluster.jobs.item_states("a")[0].attempts == 0


def test_attempts_count_per_class_of_error(new_cluster: OpenCluster) -> None:
    cluster = new_cluster(max_attempts=3, retry_backoff_s=0)
    cluster.join("w")
    cluster.submit("a")
    for attempt, error in enumerate((DIED, OUT_OF_MEMORY, DIED, OUT_OF_MEMORY), 1):
        claim = cluster.take("w")
        assert claim.attempt == attempt
        assert cluster.give_back("w", claim, "retry", error) == "ok"
    assert cluster.give_back("w", cluster.take("w"), "retry", DIED) == "failed"
    state = cluster.jobs.job_state("a")
    assert state.state == "failed"
    assert state.error is not None
    assert (state.error["code"], state.error["worker"], state.error["index"]) == ("engine_died", "w", 0)
    assert heard(cluster, "a-0")["status"] == "FAILURE"


def test_the_first_retry_is_at_once_and_each_further_one_waits_twice_as_long(new_cluster: OpenCluster) -> None:
    cluster = new_cluster(max_attempts=5, retry_backoff_s=10)
    cluster.join("w")
    cluster.submit("a")
    waits = []
    for _ in range(4):
        cluster.give_back("w", cluster.take("w"), "retry", DIED)
        entries = cluster.client.zrange(cluster.key("backoff"), 0, -1, withscores=True)
        waits += [round((score - cluster.now_ms()) / 1000) for _, score in entries]
        if entries:
            assert cluster.jobs.item_states("a")[0].state == "waiting"
            assert cluster.claim("w") is None
            cluster.reap()
            assert cluster.claim("w") is None
        cluster.end_backoff()
        cluster.tickets.clear()
        cluster.reap()
        assert not entries or cluster.tickets == ["w"]
    assert waits == [10, 20, 40]


def test_an_error_that_is_final_fails_the_job_and_stops_the_others(cluster: Cluster) -> None:
    cluster.join("v", "w")
    cluster.submit("a", items=3)
    mine, others = cluster.take("v"), cluster.take("w")
    assert cluster.give_back("v", mine, "final") == "failed"
    assert cluster.jobs.job_state("a").state == "failed"
    assert cluster.renew("w", others.claim_id).lost == (others.claim_id,)
    assert heard(cluster, "a-0")["traceback"] == "Traceback: ..."
    assert [heard(cluster, f"a-{k}")["status"] for k in (1, 2)] == ["REVOKED", "REVOKED"]


def test_a_result_of_the_same_job_stays_when_another_item_fails(cluster: Cluster) -> None:
    cluster.join("w")
    cluster.submit("a", items=2)
    cluster.work("w", 50)
    cluster.give_back("w", cluster.take("w"), "final")
    assert cluster.jobs.result("a", 0) is not None
    assert heard(cluster, "a-0")["status"] == "SUCCESS"
    assert {index: item.state for index, item in cluster.jobs.item_states("a").items()} == {0: "done", 1: "failed"}


def test_a_retried_job_leaves_no_sign_of_its_failure_to_celery(cluster: Cluster) -> None:
    cluster.join("w")
    cluster.submit("a", items=2)
    cluster.give_back("w", cluster.take("w"), "final")
    cluster.jobs.retry("a")
    assert [heard(cluster, f"a-{k}") for k in (0, 1)] == [{}, {}]


def test_every_item_of_a_cancelled_job_that_has_no_result_is_revoked_for_celery(cluster: Cluster) -> None:
    cluster.join("w")
    cluster.submit("a", items=3, last_needs=("Sampler",))
    cluster.work("w")
    cluster.take("w")
    cluster.jobs.cancel("a", "enough")
    statuses = [heard(cluster, f"a-{k}")["status"] for k in range(4)]
    assert statuses == ["SUCCESS", "REVOKED", "REVOKED", "REVOKED"]
    assert heard(cluster, "a-3")["task_id"] == "a-3"


# -- workers that lack something ----------------------------------------------------------------------------------------
def test_a_job_avoids_the_worker_that_lacks_something_and_only_that_job_does(cluster: Cluster) -> None:
    cluster.join("v", "w")
    cluster.submit("a")
    cluster.submit("b")
    claim = cluster.take("v")
    assert cluster.give_back("v", claim, "lacks", LACKS) == "ok"
    assert cluster.jobs.item_states("a")[0].attempts == 0
    assert cluster.client.hget(cluster.key("job", "a"), "sig") == "sig-Sampler!a"
    assert cluster.client.sismember(cluster.key("matched"), "sig-Sampler!a")
    assert cluster.client.hget(cluster.key("job", "b"), "sig") == "sig-Sampler"
    assert [cluster.taken("v"), cluster.taken("w")] == ["b", "a"]


def test_a_job_fails_only_when_every_capable_worker_lacks_something(cluster: Cluster) -> None:
    cluster.join("u", "v", "w")
    cluster.join("other", has=("Upscaler",))
    cluster.submit("a", items=2)
    outcomes = [cluster.give_back(name, cluster.take(name), "lacks", LACKS) for name in ("u", "v", "w")]
    assert outcomes == ["ok", "ok", "failed"]
    assert cluster.jobs.job_state("a").state == "failed"


def test_an_item_that_is_to_run_elsewhere_uses_up_attempts_only_where_nobody_else_is_left(new_cluster: OpenCluster) -> None:
    cluster = new_cluster(max_attempts=3, retry_backoff_s=0)
    cluster.join("v", "w")
    cluster.submit("a", items=1)
    assert cluster.give_back("v", cluster.take("v"), "elsewhere", OUT_OF_MEMORY) == "ok"
    assert cluster.claim("v") is None, "it is barred"
    assert [cluster.give_back("w", cluster.take("w"), "elsewhere", OUT_OF_MEMORY) for _ in range(3)] == ["ok", "ok", "failed"]
    error = cluster.jobs.job_state("a").error
    assert error is not None and error["code"] == "out_of_memory"


def test_a_worker_that_lacked_something_runs_the_job_once_it_has_it(cluster: Cluster) -> None:
    cluster.join("v", "w")
    cluster.submit("a")
    cluster.give_back("v", cluster.take("v"), "lacks", LACKS)
    cluster.workers.suspend("w", "life-of-w")
    cluster.tickets.clear()
    cluster.join("v")  # nothing new
    assert cluster.claim("v") is None
    cluster.tickets.clear()
    cluster.join("v", has=("Sampler", "NewNode"))
    assert cluster.tickets == ["v"]
    assert cluster.taken("v") == "a"


def test_a_worker_that_joins_later_runs_a_job_with_a_signature_of_its_own(cluster: Cluster) -> None:
    cluster.join("v", "w")
    cluster.submit("a")
    cluster.give_back("v", cluster.take("v"), "lacks", LACKS)
    cluster.workers.leave("w", "life-of-w")
    cluster.reap()
    cluster.tickets.clear()
    cluster.join("x", has=("Sampler", "Extra"))
    assert cluster.tickets == ["x"]
    assert cluster.taken("x") == "a"


def test_a_bar_goes_with_the_job(cluster: Cluster) -> None:
    cluster.join("v", "w")
    cluster.submit("a")
    cluster.give_back("v", cluster.take("v"), "lacks", LACKS)
    cluster.work("w")
    assert cluster.jobs.job_state("a").state == "done"
    assert cluster.client.keys(cluster.key("barred", "*")) == []
    assert cluster.client.keys("*!a*") == []


def test_a_retried_job_may_run_again_on_the_worker_that_lacked_something(cluster: Cluster) -> None:
    cluster.join("v")
    cluster.submit("a")
    assert cluster.give_back("v", cluster.take("v"), "lacks", LACKS) == "failed"
    cluster.jobs.retry("a")
    assert cluster.client.hget(cluster.key("job", "a"), "sig") == "sig-Sampler"
    assert cluster.answer_tickets() == ["a"]


def test_a_prompt_that_a_comfyui_has_accepted_is_tried_elsewhere_where_a_worker_refuses_it(cluster: Cluster) -> None:
    cluster.join("v", "w")
    cluster.submit("nobody asked")
    assert cluster.give_back("v", cluster.take("v"), "refused", REFUSED) == "failed"
    cluster.submit("checked", outer="checked")
    assert cluster.give_back("v", cluster.take("v"), "refused", REFUSED) == "ok"
    assert cluster.workers.barred("checked") == {"v"} and cluster.workers.barred("nobody asked") == frozenset()
    assert cluster.claim("v") is None
    assert cluster.give_back("w", cluster.take("w"), "refused", REFUSED) == "failed"


def test_a_job_whose_owner_can_run_it_waits_for_that_one_where_all_workers_are_barred(cluster: Cluster) -> None:
    cluster.join("v")
    cluster.submit("a", outer="runs")
    assert cluster.give_back("v", cluster.take("v"), "lacks", LACKS) == "ok"
    assert cluster.claim("v") is None
    assert cluster.jobs.item_states("a")[0].state == "pending" and cluster.workers.barred("a") == {"v"}


def test_a_worker_that_lacks_the_last_stage_is_still_good_for_the_items(cluster: Cluster) -> None:
    cluster.join("v", "w", has=("Sampler", "Saver"))
    cluster.submit("a", items=1, last_needs=("Saver",))
    cluster.work("v")
    cluster.jobs.unblock("a", [(1, "{}")])
    assert cluster.give_back("v", cluster.take("v"), "lacks", LACKS) == "ok"
    assert cluster.client.hmget(cluster.key("job", "a"), "sig", "last_sig") == ["sig-Sampler", "sig-Saver!a"]
    assert cluster.claim("v") is None
    assert cluster.work("w") == "a"


def test_items_that_run_elsewhere_are_not_disturbed_by_a_bar(cluster: Cluster) -> None:
    cluster.join("v", "w")
    cluster.submit("a", items=4)
    running = cluster.take("w")
    cluster.give_back("v", cluster.take("v"), "lacks", LACKS)
    assert cluster.complete("w", running)
    assert cluster.answer_tickets() == ["a"] * 3
    assert cluster.jobs.job_state("a").state == "done"


# -- last stage ---------------------------------------------------------------------------------------------------------
def test_the_last_stage_waits_for_its_owner_and_for_a_worker_that_has_it(cluster: Cluster) -> None:
    cluster.join("w")
    cluster.submit("a", items=1, last_needs=("Saver",))
    cluster.work("w")
    assert cluster.jobs.item_states("a")[1].state == "blocked"
    assert cluster.jobs.unblock("a", [(1, '{"feed": 1}')])
    assert cluster.jobs.feed("a", 1) == '{"feed": 1}'
    assert cluster.claim("w") is None
    cluster.tickets.clear()
    cluster.join("saver", has=("Saver",))
    assert cluster.tickets == ["saver"]
    assert cluster.answer_tickets() == ["a"]
    assert cluster.jobs.job_state("a").state == "done"


def test_unblocking_twice_is_unblocking_once(cluster: Cluster) -> None:
    cluster.join("w")
    cluster.submit("a", items=1, last_needs=("Sampler",))
    cluster.work("w")
    assert cluster.jobs.unblock("a", [(1, "{}")])
    assert cluster.jobs.unblock("a", [(1, "{}")])
    claim = cluster.take("w")
    assert cluster.jobs.unblock("a", [(1, "{}")])
    assert cluster.give_back("w", claim) == "ok"
    assert cluster.work("w") == "a"


def test_the_last_stage_of_an_ended_job_cannot_be_unblocked(cluster: Cluster) -> None:
    cluster.submit("a", items=1, last_needs=("Sampler",))
    cluster.jobs.cancel("a", "enough")
    assert not cluster.jobs.unblock("a", [(1, "{}")])


# -- reopen -------------------------------------------------------------------------------------------------------------
def test_a_reopened_item_runs_again_and_its_old_result_is_gone(cluster: Cluster) -> None:
    cluster.join("w")
    cluster.submit("a", items=2)
    claim = cluster.take("w")
    cluster.complete("w", claim, 100)
    cluster.tickets.clear()
    assert cluster.jobs.reopen("a", 0, claim.claim_id)
    assert cluster.jobs.result("a", 0) is None
    assert heard(cluster, "a-0") == {}
    assert cluster.number("a", "unfetched") == 0
    again = cluster.take("w")
    assert (again.index, again.attempt) == (0, 2)
    assert not cluster.complete("w", claim)
    assert cluster.complete("w", again)


def test_reopening_twice_is_reopening_once(cluster: Cluster) -> None:
    cluster.join("w")
    cluster.submit("a", items=2)
    claim = cluster.take("w")
    cluster.complete("w", claim)
    assert cluster.jobs.reopen("a", 0, claim.claim_id)
    assert cluster.jobs.reopen("a", 0, claim.claim_id)
    again = cluster.take("w")
    assert cluster.jobs.reopen("a", 0, claim.claim_id)
    assert cluster.complete("w", again)
    assert cluster.jobs.item_states("a")[0].state == "done"
    assert cluster.jobs.job_state("a").counts["done"] == 1


def test_only_the_claim_that_did_an_item_reopens_it(cluster: Cluster) -> None:
    cluster.join("w")
    cluster.submit("a", items=2)
    cluster.work("w")
    assert not cluster.jobs.reopen("a", 0, "another claim")
    assert not cluster.jobs.reopen("a", 1, "")


def test_reopening_revives_a_done_job_whose_signature_was_released(cluster: Cluster) -> None:
    cluster.join("w")
    cluster.submit("a")
    claim = cluster.take("w")
    cluster.complete("w", claim)
    assert cluster.client.hgetall(cluster.key("sigs")) == {}
    cluster.join("x", has=("Sampler", "Extra"))  # unknown to the signature when it was released
    cluster.workers.suspend("w", "life-of-w")
    assert cluster.jobs.reopen("a", 0, claim.claim_id)
    assert cluster.tickets == ["x"]
    assert cluster.client.ttl(cluster.key("job", "a")) == -1
    assert cluster.answer_tickets() == ["a"]
    assert cluster.jobs.job_state("a").state == "done"
    assert cluster.client.ttl(cluster.key("job", "a")) > 0


def test_a_result_that_is_damaged_every_time_fails_the_item_in_the_end(new_cluster: OpenCluster) -> None:
    cluster = new_cluster(max_attempts=3)
    cluster.join("w")
    cluster.submit("a")
    for _ in range(3):
        claim = cluster.take("w")
        cluster.complete("w", claim)
        assert cluster.jobs.reopen("a", 0, claim.claim_id)
    state = cluster.jobs.job_state("a")
    assert (state.state, state.counts["done"], state.counts["failed"]) == ("failed", 0, 1)
    assert state.error is not None
    assert state.error["code"] == "blob_missing"
    assert heard(cluster, "a-0")["status"] == "FAILURE"


@pytest.mark.parametrize("ended", ["cancelled", "failed"])
def test_an_item_of_a_job_that_failed_or_was_cancelled_is_not_reopened(cluster: Cluster, ended: str) -> None:
    cluster.join("w")
    cluster.submit("a", items=2)
    claim = cluster.take("w")
    cluster.complete("w", claim)
    if ended == "cancelled":
        cluster.jobs.cancel("a", "enough")
    else:
        cluster.give_back("w", cluster.take("w"), "final")
    assert not cluster.jobs.reopen("a", 0, claim.claim_id)


# -- reading ------------------------------------------------------------------------------------------------------------
def test_specs_come_back_as_they_were_submitted_with_seeds_beyond_what_a_double_holds(cluster: Cluster) -> None:
    cluster.submit("a", items=3, last_needs=("Saver",))
    specs = cluster.jobs.specs("a")
    assert [spec.kind for spec in specs.values()] == ["generate"] * 3 + ["last"]
    assert specs[1].seed == "9223372036854775809"
    assert specs[1].patches[0].value == 9223372036854775809
    cluster.join("w")
    assert json.loads(cluster.take("w").packed_spec)[1] == "9223372036854775808"


def test_a_job_is_listed_until_its_keys_expire(cluster: Cluster) -> None:
    cluster.submit("a")
    cluster.submit("b")
    cluster.jobs.cancel("a", "enough")
    assert list(cluster.jobs.jobs()) == ["a", "b"]
    until = cluster.client.zscore(cluster.key("ended"), "a") - cluster.now_ms()
    assert 0.9 < until / 1000 / cluster.settings.job_ttl_s <= 1
    cluster.client.delete(*cluster.client.keys("dc:job:a*"))
    cluster.client.zadd(cluster.key("ended"), {"a": 0}, xx=True)
    assert list(cluster.jobs.jobs()) == ["b"]
    cluster.reap()
    assert cluster.client.zrange(cluster.key("jobs"), 0, -1) == ["b"]
    assert cluster.client.zcard(cluster.key("ended")) == 0


def test_submitting_a_known_job_changes_nothing(cluster: Cluster) -> None:
    cluster.join("w")
    cluster.submit("a", items=2)
    cluster.work("w")
    sent = cluster.sent
    cluster.submit("a", items=2)
    assert cluster.sent == sent
    assert cluster.jobs.job_state("a").counts["done"] == 1
