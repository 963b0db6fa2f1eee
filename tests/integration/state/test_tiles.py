"""Items that come later: a job grows when its owner knows the size of the image, and tiles run when their owner says so."""
from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from distributed_comfy.errors import EngineDied, WorkerLacks
from distributed_comfy.state.jobs import FinishedItem
from distributed_comfy.state.specs import unpack_spec
from tests.integration.state.conftest import OpenCluster
from tests.state_audit import Audit
from tests.state_cluster import OWNER, Cluster, Job, result_of, submission, tile_specs

MIB = 2**20
DIED = EngineDied(status="9", log_tail="")


def states(cluster: Cluster, job: str = "a") -> list[str]:
    return [state.state for state in cluster.jobs.item_states(job).values()]


def begin(cluster: Cluster, tiles: int = 4, *, last: bool = True, final: bool = True) -> int:
    """A job with one generated item, and its tiles; the index of the first one."""
    cluster.submit("a", items=1, prepare=True, grows=True, last_needs=("Sampler",) if last else None)
    assert cluster.work("w") == "a"
    assert cluster.unblock("a", 1)
    assert cluster.work("w") == "a"
    first = 2 + last
    assert cluster.extend("a", first, tiles, final=final)
    cluster.tickets.clear()
    Audit(cluster).check()
    return first


@pytest.fixture
def joined(cluster: Cluster) -> Cluster:
    cluster.join("w")
    return cluster


# -- growing ------------------------------------------------------------------------------------------------------------
def test_all_stages_run_one_after_the_other(joined: Cluster) -> None:
    begin(joined, 3)
    assert states(joined) == ["done", "done", "blocked"] + ["blocked"] * 3
    assert joined.claim("w") is None
    assert joined.unblock("a", 3, 4, 5)
    assert [joined.work("w") for _ in range(4)] == ["a", "a", "a", ""]
    assert joined.jobs.job_state("a").state == "running"
    assert joined.unblock("a", 2)
    joined.work("w")
    state = joined.jobs.job_state("a")
    assert (state.state, state.counts["total"], state.counts["done"], state.tiles, state.tiles_done) == ("done", 6, 6, 3, 3)
    Audit(joined).check()


def test_specs_that_are_read_while_a_job_grows_are_of_one_moment(joined: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process enters the tiles between any two questions that a reader asks."""
    joined.submit("a", items=1, prepare=True, grows=True)
    send, asked = type(joined.jobs._client.connection_pool).get_connection, []

    def grow_after_the_first(pool: Any, *args: Any, **options: Any) -> Any:
        asked.append(None)
        if len(asked) == 2:
            monkeypatch.undo()
            joined.extend("a", 2, 3)
        return send(pool, *args, **options)

    monkeypatch.setattr(type(joined.jobs._client.connection_pool), "get_connection", grow_after_the_first)
    assert [spec.kind for spec in joined.jobs.specs("a").values()] in (["generate", "prepare"], ["generate", "prepare", *["tile"] * 3])
    monkeypatch.undo()
    assert asked, "it asked through this pool"


def test_the_item_that_prepares_waits_only_where_something_comes_before_it(joined: Cluster) -> None:
    joined.submit("a", items=0, prepare=True, grows=True)
    joined.submit("b", items=1, prepare=True, grows=True)
    assert (states(joined, "a"), states(joined, "b")) == (["pending"], ["pending", "blocked"])


def test_a_growing_job_without_a_last_stage_stays_until_its_owner_knows_that_there_are_no_more_tiles(joined: Cluster) -> None:
    first = begin(joined, 2, last=False, final=False)
    joined.unblock("a", first, first + 1)
    joined.work("w")
    joined.work("w")
    assert set(states(joined)) == {"done"} and joined.jobs.job_state("a").state == "running"
    assert joined.extend("a", first + 2, 0, final=True)
    assert joined.jobs.job_state("a").state == "done"
    assert joined.extend("a", first + 2, 0, final=True), "said again"
    assert not joined.extend("a", first + 2, 1, final=True), "a new one"
    Audit(joined).check()


def test_a_growing_job_is_not_done_with_its_last_stage_either(joined: Cluster) -> None:
    first = begin(joined, 1, final=False)
    joined.unblock("a", first, 2)
    joined.work("w")
    joined.work("w")
    assert joined.jobs.job_state("a").state == "running"
    joined.extend("a", 0, 0, final=True)
    assert joined.jobs.job_state("a").state == "done"


def test_known_tiles_stay_as_they_are(joined: Cluster) -> None:
    first = begin(joined, 3, final=False)
    joined.unblock("a", first)
    claim = joined.take("w")
    assert joined.extend("a", first, 5, final=False, finished=(first, first + 4))
    assert states(joined)[first:] == ["running", "blocked", "blocked", "blocked", "done"]
    assert joined.complete("w", claim)
    assert joined.jobs.job_state("a").tiles == 5
    Audit(joined).check()


def test_an_ended_job_does_not_grow(joined: Cluster) -> None:
    first = begin(joined, 2, final=False)
    joined.jobs.cancel("a", "enough")
    assert not joined.extend("a", first, 3)
    assert joined.extend("a", first, 2, final=False), "nothing new"
    assert not joined.extend("unknown", first, 3)
    assert len(states(joined)) == first + 2


def test_a_job_that_was_not_meant_to_grow_does_not(joined: Cluster) -> None:
    joined.submit("a", items=1, last_needs=("Sampler",))
    assert not joined.extend("a", 2, 1)
    assert states(joined) == ["pending", "blocked"]


def test_thousands_come_in_several_calls_and_have_their_own_specs(joined: Cluster) -> None:
    first = begin(joined, 1203)
    specs = joined.jobs.specs("a")
    assert [specs[index] for index in range(first, first + 1203)] == tile_specs(first, 1203)
    assert (specs[0].kind, specs[1].kind, specs[2].kind) == ("generate", "prepare", "last")
    assert joined.number("a", "grows") == 0 and joined.jobs.job_state("a").tiles == 1203
    joined.unblock("a", *range(first, first + 450))
    assert states(joined)[first:].count("pending") == 450
    claim = joined.take("w")
    assert unpack_spec(joined.jobs.prompts("a")[1], claim.index, claim.packed_spec) == tile_specs(first, 1)[0]


def test_any_item_may_wait(joined: Cluster) -> None:
    joined.jobs.submit(replace(submission("a", Job(items=3)), blocked=(1,)), OWNER)
    assert states(joined) == ["pending", "blocked", "pending"]
    assert joined.take("w").index == 0
    joined.unblock("a", 1)
    assert joined.jobs.feed("a", 1) == '{"1": {}}' and joined.jobs.feed("a", 0) == ""


# -- unblocking ---------------------------------------------------------------------------------------------------------
def test_tiles_run_in_the_order_in_which_they_were_unblocked_each_with_its_feed(joined: Cluster) -> None:
    first = begin(joined, 4)
    joined.unblock("a", first + 2, first, first + 3)
    order = []
    while claim := joined.claim("w"):
        order.append(claim.index)
        assert joined.jobs.feed("a", claim.index) == f'{{"{claim.index}": {{}}}}'
        joined.complete("w", claim)
    assert order == [first + 2, first, first + 3]
    assert joined.jobs.feed("a", first + 1) == ""


def test_unblocking_is_idempotent_for_each_item(joined: Cluster) -> None:
    first = begin(joined, 3)
    joined.unblock("a", first)
    claim = joined.take("w")
    assert joined.jobs.unblock("a", [(first, "other"), (first + 1, "{}"), (first + 1, "other")])
    assert joined.jobs.feed("a", first) != "other" and joined.jobs.feed("a", first + 1) == "{}"
    assert joined.complete("w", claim)
    assert joined.take("w").index == first + 1 and joined.claim("w") is None


@pytest.mark.parametrize(("ready", "idle", "called"), [(2, 5, 2), (5, 2, 2), (3, 3, 3)])
def test_as_many_idle_workers_are_called_as_there_are_tiles_to_run(cluster: Cluster, ready: int, idle: int, called: int) -> None:
    cluster.join("w")
    first = begin(cluster, 6)
    cluster.workers.leave("w", cluster.incarnations["w"])
    cluster.reap()
    cluster.join(*(f"w{k}" for k in range(idle)))
    cluster.tickets.clear()
    cluster.unblock("a", *range(first, first + ready))
    assert len(cluster.tickets) == len(set(cluster.tickets)) == called


def test_tiles_do_not_make_other_users_wait(joined: Cluster) -> None:
    first = begin(joined, 20)
    joined.unblock("a", *range(first, first + 20))
    joined.submit("b", submitter="bob")
    assert "b" in [joined.work("w") for _ in range(2)]


# -- bytes --------------------------------------------------------------------------------------------------------------
def test_the_whole_image_does_not_count_as_the_size_of_a_tile(new_cluster: OpenCluster) -> None:
    cluster = new_cluster(job_bytes_in_flight=10 * MIB, slots=8)
    cluster.join("w")
    cluster.submit("a", items=0, prepare=True, grows=True)
    cluster.work("w", 9 * MIB)
    cluster.jobs.mark_fetched("a", 0, cluster.jobs.item_states("a")[0].claim_id)
    cluster.extend("a", 1, 8)
    cluster.unblock("a", *range(1, 9))
    first = [cluster.claim("w") for _ in range(4)]
    assert [claim is not None for claim in first] == [True, True, False, False], "two, before the first result tells its size"
    assert first[0] and cluster.complete("w", first[0], 2 * MIB)
    assert [cluster.claim("w") is not None for _ in range(5)] == [True] * 3 + [False] * 2, "2 MiB unfetched and four running"
    Audit(cluster).check()


def test_tiles_that_an_earlier_job_finished_tell_their_size(new_cluster: OpenCluster) -> None:
    cluster = new_cluster(job_bytes_in_flight=10 * MIB, slots=8)
    cluster.join("w")
    cluster.submit("a", items=0, prepare=True, grows=True)
    cluster.work("w")
    cluster.extend("a", 1, 8, finished=(2, 5), size_bytes=4 * MIB)
    assert states(cluster) == ["done", "blocked", "done", "blocked", "blocked", "done", "blocked", "blocked", "blocked"]
    assert cluster.jobs.result("a", 5) is not None and cluster.jobs.unfetched("a") == 0
    cluster.unblock("a", 1, 2, 3, 4, 6)
    assert [claim.index for _ in range(4) if (claim := cluster.claim("w"))] == [1, 3]
    Audit(cluster).check()


# -- when things go wrong -----------------------------------------------------------------------------------------------
def test_a_tile_that_is_tried_again_comes_first_and_finds_its_feed(joined: Cluster) -> None:
    first = begin(joined, 3)
    joined.unblock("a", first, first + 1)
    claim = joined.take("w")
    joined.give_back("w", claim, "retry", DIED)
    again = joined.take("w")
    assert again.index == claim.index == first and joined.jobs.feed("a", first) == f'{{"{first}": {{}}}}'


def test_a_reopened_tile_runs_again(joined: Cluster) -> None:
    first = begin(joined, 2)
    joined.unblock("a", first)
    claim = joined.take("w")
    joined.complete("w", claim, MIB)
    assert joined.jobs.reopen("a", first, claim.claim_id)
    assert joined.jobs.job_state("a").tiles_done == 0
    assert joined.claim("w") is None, "what it read may be gone, too"
    joined.unblock("a", first)
    assert joined.take("w").index == first


def test_a_tile_of_an_earlier_job_that_proves_damaged_waits_for_its_feed(joined: Cluster) -> None:
    first = begin(joined, 1, last=False, final=False)
    joined.extend("a", first + 1, 1, finished=(first + 1,))
    assert joined.jobs.reopen("a", first + 1, f"old-{first + 1}")
    assert states(joined)[first + 1] == "blocked" and joined.claim("w") is None
    joined.unblock("a", first + 1)
    assert joined.take("w").index == first + 1
    Audit(joined).check()


@pytest.mark.parametrize("state", ["blocked", "pending", "running", "waiting"])
def test_a_tile_that_a_crash_rolled_back_is_done_again_by_word_of_its_owner(joined: Cluster, state: str) -> None:
    first = begin(joined, 2)
    joined.unblock("a", first, first + 1)
    claim = joined.take("w")
    joined.complete("w", claim, MIB)
    joined.jobs.reopen("a", first, claim.claim_id)
    if state != "blocked":
        joined.work("w")
        joined.unblock("a", first)
    again = joined.take("w") if state in ("running", "waiting") else None
    if again and state == "waiting":
        joined.give_back("w", again, "retry", DIED)
        again = joined.take("w")
        joined.give_back("w", again, "retry", DIED)
    assert states(joined)[first] == state
    Audit(joined).check()
    item = FinishedItem(first, claim.claim_id, result_of(MIB))
    assert joined.jobs.restore("a", [item]) and joined.jobs.restore("a", [item]), "said again"
    Audit(joined).check()
    assert joined.jobs.result("a", first) == (claim.claim_id, result_of(MIB))
    assert state != "running" or not joined.complete("w", again), "whoever ran it comes too late"
    while joined.work("w"):
        pass
    joined.unblock("a", 2)
    joined.work("w")
    assert joined.jobs.job_state("a").state == "done"
    assert not joined.jobs.restore("a", [item])
    Audit(joined).check()


def test_no_word_of_its_owner_changes_an_item_that_is_done_or_unknown(joined: Cluster) -> None:
    first = begin(joined, 2)
    joined.unblock("a", first)
    claim = joined.take("w")
    joined.complete("w", claim)
    assert joined.jobs.restore("a", [FinishedItem(first, "other", result_of(1)), FinishedItem(99, "none", result_of(1))])
    assert joined.jobs.item_states("a")[first].claim_id == claim.claim_id and len(states(joined)) == first + 2
    Audit(joined).check()


def test_a_failed_tile_ends_the_job_and_retry_runs_it_again(joined: Cluster) -> None:
    first = begin(joined, 4)
    joined.unblock("a", first, first + 1, first + 2)
    joined.work("w")
    joined.give_back("w", joined.take("w"), "final")
    state = joined.jobs.job_state("a")
    assert (state.state, state.fatal, state.tiles_done) == ("failed", first + 1, 1)
    assert not joined.unblock("a", first + 3)
    Audit(joined).check()
    joined.jobs.retry("a")
    assert states(joined)[2:] == ["blocked", "done", "blocked", "blocked", "blocked"], "their crops went with the job's end"
    assert joined.jobs.item_states("a")[first + 1].error is None
    Audit(joined).check()
    joined.unblock("a", first + 1, first + 2, first + 3, 2)
    joined.answer_tickets()
    assert joined.jobs.job_state("a").state == "done"


def test_a_job_that_can_do_without_items_cannot_do_without_tiles(joined: Cluster) -> None:
    joined.submit("a", items=3, prepare=True, grows=True, spare="all")
    joined.work("w")
    joined.give_back("w", joined.take("w"), "final")
    joined.work("w")
    joined.unblock("a", 3)
    joined.give_back("w", joined.take("w"), "final")
    assert joined.jobs.job_state("a").state == "failed", "nor without the image"
    joined.jobs.retry("a")
    assert states(joined) == ["done", "pending", "done", "blocked"]
    joined.give_back("w", joined.take("w"), "final")
    joined.unblock("a", 3)
    joined.work("w")
    joined.extend("a", 4, 2)
    joined.unblock("a", 4, 5)
    joined.give_back("w", joined.take("w"), "final")
    assert joined.jobs.job_state("a").state == "failed"
    joined.jobs.retry("a")
    assert states(joined) == ["done", "failed", "done", "done", "blocked", "blocked"], "the image was made without item 1, and stays so"
    Audit(joined).check()
    joined.unblock("a", 4, 5)
    joined.answer_tickets()
    assert joined.jobs.job_state("a").state == "done"


def test_an_item_that_a_collector_did_without_stays_out_once_there_are_tiles_of_its_batch(joined: Cluster) -> None:
    """The collector is linked to the upscale itself: no item prepares, but the image is made all the same."""
    joined.submit("a", items=3, grows=True, spare="all")
    joined.work("w")
    joined.give_back("w", joined.take("w"), "final")
    joined.work("w")
    joined.extend("a", 3, 2)
    joined.unblock("a", 3, 4)
    joined.give_back("w", joined.take("w"), "final")
    assert joined.jobs.job_state("a").state == "failed"
    joined.jobs.retry("a")
    assert states(joined) == ["done", "failed", "done", "blocked", "blocked"]
    Audit(joined).check()
    joined.unblock("a", 3, 4)
    joined.answer_tickets()
    assert joined.jobs.job_state("a").state == "done"


def test_the_item_that_prepares_waits_for_what_was_missing(joined: Cluster) -> None:
    joined.submit("a", items=2, prepare=True, grows=True, spare="all")
    joined.work("w")
    joined.give_back("w", joined.take("w"), "final")
    joined.unblock("a", 2)
    joined.jobs.cancel("a", "enough")
    joined.jobs.retry("a")
    assert states(joined) == ["done", "pending", "blocked"]
    Audit(joined).check()


def test_a_paused_and_a_parked_job_hand_out_no_tiles(joined: Cluster) -> None:
    first = begin(joined, 2)
    joined.jobs.pause("a")
    assert joined.unblock("a", first) and joined.tickets == [] and joined.claim("w") is None
    joined.jobs.resume("a")
    assert joined.tickets == ["w"] and joined.take("w").index == first
    joined.disown("a")
    joined.reap()
    assert joined.jobs.job_state("a").state == "parked"
    joined.join("v")
    assert joined.unblock("a", first + 1) and joined.claim("v") is None
    assert joined.jobs.own("a", "owner")
    assert joined.take("v").index == first + 1


def test_a_cancelled_job_stops_its_tiles_and_offers_none(joined: Cluster) -> None:
    first = begin(joined, 3)
    joined.unblock("a", first, first + 1)
    claim = joined.take("w")
    joined.jobs.cancel("a", "enough")
    assert not joined.complete("w", claim)
    assert joined.claim("w") is None and states(joined)[first:] == ["stopped", "pending", "blocked"]
    joined.jobs.retry("a")
    assert joined.claim("w") is None and states(joined)[first:] == ["blocked"] * 3
    joined.unblock("a", first)
    assert joined.take("w").index == first and states(joined)[first:] == ["running", "blocked", "blocked"]
    Audit(joined).check()


def test_a_tile_of_a_dead_or_drained_worker_goes_elsewhere(joined: Cluster) -> None:
    first = begin(joined, 2)
    joined.unblock("a", first, first + 1)
    joined.take("w")
    joined.join("v")
    joined.expire("w")
    joined.reap()
    assert joined.take("v").index == first
    joined.join("x", "y")
    joined.jobs.drain("x")
    assert joined.claim("x") is None and joined.take("y").index == first + 1


def test_a_worker_that_lacks_something_for_tiles_is_barred(cluster: Cluster) -> None:
    cluster.join("w")
    first = begin(cluster, 2)
    cluster.join("v")
    cluster.unblock("a", first)
    assert cluster.give_back("w", cluster.take("w"), "lacks", WorkerLacks(worker="w", lacks="x")) == "ok"
    assert cluster.claim("w") is None and cluster.take("v").index == first


def test_the_end_of_a_tile_wakes_its_owner_and_says_which(joined: Cluster) -> None:
    first = begin(joined, 2)
    cursor, _ = joined.jobs.wait_events("a", "", 0)
    joined.unblock("a", first + 1)
    claim = joined.take("w")
    joined.complete("w", claim)
    _, events = joined.jobs.wait_events("a", cursor, 0)
    assert [(event.kind, event.index, event.claim_id) for event in events] == [
        ("claimed", first + 1, claim.claim_id),
        ("done", first + 1, claim.claim_id),
    ]
