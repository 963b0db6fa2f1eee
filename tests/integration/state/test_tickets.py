"""Who is called, how often, and that nothing claimable waits while somebody capable is idle - all with the reaper off."""
from __future__ import annotations

import os
import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from distributed_comfy.errors import RedisUnreachable
from distributed_comfy.state.records import Claim
from tests.integration.state.conftest import OpenCluster
from tests.state_audit import Audit
from tests.state_cluster import Cluster, open_cluster

CLASSES = ("A", "B", "C")
EXAMPLES = int(os.environ.get("TABLE_RUNS", "20"))
ON_ONE_REDIS = settings(max_examples=EXAMPLES, suppress_health_check=[HealthCheck.function_scoped_fixture])


# -- who is called ------------------------------------------------------------------------------------------------------
def test_as_many_workers_are_called_as_there_are_items(cluster: Cluster) -> None:
    cluster.join(*(f"w{k}" for k in range(5)))
    cluster.submit("a", items=3)
    assert len(set(cluster.tickets)) == 3
    cluster.submit("b", items=9)
    assert len(set(cluster.tickets)) == len(cluster.tickets) == 5


def test_the_least_loaded_workers_are_called_first(new_cluster: OpenCluster) -> None:
    cluster = new_cluster(slots=3)
    cluster.join("u", "v", "w")
    cluster.submit("a", items=3)
    assert sorted(cluster.tickets) == ["u", "v", "w"]
    cluster.submit("b", items=5)
    assert sorted(cluster.tickets) == ["u", "u", "u", "v", "v", "v", "w", "w"]


def test_a_worker_that_finishes_calls_itself_only_if_there_is_more(cluster: Cluster) -> None:
    cluster.join("w")
    cluster.submit("a", items=2)
    cluster.work("w")
    assert cluster.tickets == ["w"]
    cluster.work("w")
    assert cluster.tickets == []


def test_the_worker_without_the_model_is_never_called_and_never_claims(cluster: Cluster) -> None:
    cluster.join("bare", has=("Sampler",))
    cluster.join("full", has=("Sampler", "Model"))
    cluster.submit("a", items=20, needs=("Sampler", "Model"))
    calls = []
    while cluster.tickets:
        calls += cluster.tickets
        assert cluster.work(cluster.tickets[0]) == "a"
    assert calls == ["full"] * 20
    assert cluster.claim("bare") is None
    assert cluster.tickets == []


def test_a_busy_model_keeps_nobody_from_other_work(cluster: Cluster) -> None:
    cluster.join("bare", has=("Sampler",))
    cluster.join("full", has=("Sampler", "Model"))
    cluster.submit("a", items=5, needs=("Sampler", "Model"))
    cluster.submit("b", items=2)
    held = cluster.take("full")
    assert [cluster.work("bare"), cluster.work("bare")] == ["b", "b"]
    assert cluster.tickets == []
    cluster.complete("full", held)
    assert cluster.answer_tickets() == ["a"] * 4


def test_an_item_whose_ticket_was_used_for_another_is_offered_again(cluster: Cluster) -> None:
    """One is called for the old job and takes the urgent one; the other, idle all the time, must be called for the old one."""
    cluster.join("both", has=("A", "B"))
    cluster.submit("old", needs=("A",))
    assert cluster.tickets == ["both"]
    cluster.join("idle", has=("A",))
    cluster.submit("urgent", needs=("B",), priority=9)
    assert cluster.tickets == ["both"]
    assert cluster.taken("both") == "urgent"
    assert cluster.tickets == ["idle"]
    assert cluster.taken("idle") == "old"


def test_a_ticket_that_changes_its_purpose_saves_another_one(cluster: Cluster) -> None:
    cluster.join("v", "w", "x", has=("A", "B"))
    cluster.submit("a", needs=("A",))
    cluster.submit("b", needs=("B",))
    first, second = cluster.tickets
    assert cluster.taken(second) == "a"  # meant for b
    assert cluster.tickets == [first]
    assert cluster.taken(first) == "b"
    assert cluster.tickets == []


def test_a_submission_whose_submitter_died_before_the_matching_is_matched_by_its_owner(cluster: Cluster) -> None:
    cluster.join("w")
    send, cluster.scripts._send_tickets = cluster.scripts._send_tickets, lambda names: None
    original, cluster.jobs._matching.match_signatures = cluster.jobs._matching.match_signatures, lambda sigs: None  # type: ignore[method-assign]
    cluster.submit("a")
    cluster.jobs._matching.match_signatures, cluster.scripts._send_tickets = original, send  # type: ignore[method-assign]
    assert cluster.claim("w") is None
    assert cluster.jobs.own("a", "owner")
    assert cluster.answer_tickets() == ["a"]


def test_submitting_again_after_a_lost_reply_matches_what_the_first_time_did_not(cluster: Cluster) -> None:
    cluster.join("w")
    original, cluster.jobs._matching.match_signatures = cluster.jobs._matching.match_signatures, lambda sigs: None  # type: ignore[method-assign]
    cluster.submit("a")
    cluster.jobs._matching.match_signatures = original  # type: ignore[method-assign]
    cluster.submit("a")
    assert cluster.answer_tickets() == ["a"]


# -- a broker that does not answer --------------------------------------------------------------------------------------
def test_a_transition_keeps_its_outcome_when_its_tickets_cannot_be_sent(cluster: Cluster) -> None:
    cluster.join("v", "w")
    cluster.submit("a", items=3)
    cluster.tickets.clear()

    def unreachable(names: object) -> None:
        raise RedisUnreachable(url="the broker", reason="gone", setting="DC_REDIS_URL")

    send, cluster.scripts._send_tickets = cluster.scripts._send_tickets, unreachable
    claim = cluster.take("v")
    assert cluster.complete("v", claim)
    cluster.scripts._send_tickets = send
    cluster.age_tickets()
    cluster.reap()
    assert cluster.answer_tickets() == ["a", "a"]


def test_matching_happens_although_tickets_cannot_be_sent(cluster: Cluster) -> None:
    def broken(names: object) -> None:
        raise OSError("not ours")

    cluster.submit("b")
    send, cluster.scripts._send_tickets = cluster.scripts._send_tickets, broken
    with pytest.raises(OSError, match="not ours"):
        cluster.join("v")
    cluster.join("w")
    with pytest.raises(OSError, match="not ours"):
        cluster.submit("a", needs=("Sampler",))
    cluster.scripts._send_tickets = send
    cluster.age_tickets()
    cluster.reap()
    assert sorted(cluster.answer_tickets()) == ["a", "b"]


# -- two users ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize("kind", ["new", "came a moment ago", "another model", "two others"])
def test_a_one_image_prompt_starts_within_one_item_of_a_thousand(cluster: Cluster, workers: int, kind: str) -> None:
    names = [f"w{k}" for k in range(workers)]
    cluster.join(*names, has=("Sampler", "Upscaler"))
    cluster.submit("ann-1", items=1000, submitter="ann")
    if kind == "two others":
        cluster.submit("eve-1", items=1000, submitter="eve")
    if kind == "came a moment ago":
        cluster.submit("bob-0", submitter="bob")
    held = {name: cluster.take(name) for name in names}
    for _ in range(5):
        for name in names:
            cluster.complete(name, held[name])
            held[name] = cluster.take(name)
    needs = ("Upscaler",) if kind == "another model" else ("Sampler",)
    cluster.submit("bob-1", submitter="bob", needs=needs)
    started = []
    for name in names:  # each finishes one item
        cluster.complete(name, held[name])
        started.append(cluster.taken(name))
    assert "bob-1" in started
    if kind != "two others":
        assert started[0] == "bob-1"


# -- random interleavings -----------------------------------------------------------------------------------------------
class Bustle:
    """Tickets answered and items finished in any order."""

    def __init__(self, cluster: Cluster, choose: random.Random) -> None:
        self.cluster = cluster
        self.choose = choose
        self.held: list[tuple[str, Claim]] = []

    def step(self) -> bool:
        """Answer a ticket or finish an item; False where there is neither."""
        moves = [self.answer] * bool(self.cluster.tickets) + [self.finish] * bool(self.held)
        if not moves:
            return False
        self.choose.choice(moves)()
        return True

    def answer(self) -> None:
        name = self.choose.choice(self.cluster.tickets)
        claim = self.cluster.claim(name)
        if claim is not None:
            self.held.append((name, claim))

    def finish(self) -> None:
        name, claim = self.held.pop(self.choose.randrange(len(self.held)))
        how = self.choose.choice(["complete"] * 8 + ["release", "lacks"])
        if how == "lacks":
            self.cluster.give_back(name, claim, "lacks")  # the job fails when it was the last one that could
            return
        ended = self.cluster.jobs.job_state(claim.job_id).ended
        if how == "release":
            assert self.cluster.give_back(name, claim) == ("lost" if ended else "ok")
        else:
            assert self.cluster.complete(name, claim) is not ended


@ON_ONE_REDIS
@given(
    st.integers(0, 2**32),
    st.integers(1, 12),
    st.integers(1, 6),
    st.sampled_from([1, 3]),
    st.sampled_from(["one signature", "three signatures", "last stages"]),
)
def test_one_item_jobs_cost_no_more_tickets_than_jobs_and_workers(
    redis_url: str, seed: int, jobs: int, workers: int, slots: int, kind: str
) -> None:
    cluster = _fresh(redis_url, slots)
    choose = random.Random(seed)
    cluster.join(*(f"w{k}" for k in range(workers)), has=CLASSES)
    bustle = Bustle(cluster, choose)
    bustle.finish = lambda: _complete_any(bustle)  # type: ignore[method-assign]
    waiting = [f"j{k}" for k in range(jobs)]
    blocked = []
    while waiting or blocked or cluster.tickets or bustle.held:
        kind_of_step = choose.choice(["submit", "unblock", "move", "move"])
        if kind_of_step == "submit" and waiting:
            job_id = waiting.pop()
            needs = (choose.choice(CLASSES),) if kind == "three signatures" else ("A",)
            cluster.submit(job_id, needs=needs, last_needs=("B",) if kind == "last stages" else None, priority=choose.randint(4, 6))
            blocked += [job_id] if kind == "last stages" else []
        elif kind_of_step == "unblock" and blocked:
            cluster.jobs.unblock(blocked.pop(), [(1, "{}")])
        else:
            bustle.step()
        Audit(cluster).check()
    items = jobs * (2 if kind == "last stages" else 1)
    assert {state.state for state in cluster.jobs.jobs().values()} == {"done"}
    assert cluster.sent <= items + workers
    cluster.client.close()


def _complete_any(bustle: Bustle) -> None:
    name, claim = bustle.held.pop(bustle.choose.randrange(len(bustle.held)))
    assert bustle.cluster.complete(name, claim)


@ON_ONE_REDIS
@given(st.integers(0, 2**32), st.sampled_from([1, 3]))
def test_nothing_is_ever_stranded_among_workers_of_different_capabilities(redis_url: str, seed: int, slots: int) -> None:
    cluster = _fresh(redis_url, slots)
    choose = random.Random(seed)
    bustle = Bustle(cluster, choose)
    jobs = [f"j{k}" for k in range(8)]
    names = [f"w{k}" for k in range(4)]
    cluster.join("all", has=CLASSES)
    while jobs or names:
        step = choose.choice(["submit", "join", "priority", "pause", "move", "move", "move", "move"])
        known = [job for job, state in cluster.jobs.jobs().items() if not state.ended]
        if step == "submit" and jobs:
            needs = tuple(choose.sample(CLASSES, choose.randint(1, 2)))
            cluster.submit(jobs.pop(), items=choose.randint(1, 3), needs=needs, submitter=choose.choice(["ann", "bob"]))
        elif step == "join" and names:
            cluster.join(names.pop(), has=choose.sample(CLASSES, choose.randint(1, 2)))
        elif step == "priority" and known:
            cluster.jobs.set_priority(choose.choice(known), choose.randint(0, 9))
        elif step == "pause" and known:
            job = choose.choice(known)
            cluster.jobs.pause(job)
            bustle.step()
            if not cluster.jobs.job_state(job).ended:
                cluster.jobs.resume(job)
        else:
            bustle.step()
        Audit(cluster).check()
    while bustle.step():
        pass
    Audit(cluster).check()
    left = {job: state.state for job, state in cluster.jobs.jobs().items() if state.state not in ("done", "failed")}
    assert left == {}
    cluster.client.close()


def _fresh(redis_url: str, slots: int) -> Cluster:
    cluster = open_cluster(redis_url, slots=slots)
    cluster.client.flushall()
    return cluster
