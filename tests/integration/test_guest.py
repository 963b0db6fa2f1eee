"""A master's guest on a real Redis: it registers with its first claim, lives while it holds something, and comes back from the dead."""
from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, cast

import pytest
import redis

from distributed_comfy.comfyui.guest import Guest
from distributed_comfy.errors import ClusterUnavailable
from distributed_comfy.messages import ItemResult
from distributed_comfy.state.records import WorkerFacts
from tasks.cluster import Cluster
from tests.state_audit import Audit
from tests.state_cluster import Cluster as Table
from tests.state_cluster import open_cluster


@pytest.fixture
def table(redis_url: str) -> Table:
    return open_cluster(redis_url, lease_ttl_s=1.0, renew_interval_s=0.1)


def guest(name: str = "pc1-master") -> Guest:
    return Guest(WorkerFacts(name, "pc1", "", "comfyui"))


def until(what: Callable[[], Any], timeout_s: float = 10.0) -> Any:
    deadline = time.monotonic() + timeout_s
    while not (found := what()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return found


def as_cluster(table: Table) -> Cluster:
    return cast(Cluster, table)


def test_a_guest_registers_with_its_first_claim_and_keeps_what_it_holds(table: Table) -> None:
    table.submit("a", items=2)
    one = guest()
    claim = one.claim(as_cluster(table), "a")
    assert claim is not None and claim.index == 0
    time.sleep(1.5)  # longer than its lease
    table.reap()
    assert table.jobs.item_states("a")[0].worker == "pc1-master"
    assert one.complete(as_cluster(table), claim, ItemResult())
    assert table.jobs.item_states("a")[0].state == "done"
    Audit(table).check()


def test_two_masters_of_one_host_have_two_names(table: Table) -> None:
    table.join("v", "w")  # before the first result, more items run at once only where there are workers for them
    table.submit("a", items=2)
    one, two = guest(), guest()
    assert one.claim(as_cluster(table), "a") and two.claim(as_cluster(table), "a")
    assert (one.name, two.name) == ("pc1-master", "pc1-master-2")


def test_what_is_given_back_runs_elsewhere(table: Table) -> None:
    table.join("w")
    table.submit("a")
    one = guest()
    claim = one.claim(as_cluster(table), "a")
    assert claim is not None
    one.give_back(as_cluster(table), claim, "release")
    assert table.take("w").index == 0


def test_a_guest_that_was_declared_dead_registers_again_with_its_next_claim(table: Table) -> None:
    table.join("v", "w")
    table.submit("a", items=2)
    one = guest()
    assert one.claim(as_cluster(table), "a") is not None
    table.client.delete(table.key("worker", "pc1-master"), table.key("lease", "pc1-master"))
    until(lambda: one._incarnation == "")
    table.client.delete(table.key("claims", "pc1-master"))
    claim = until(lambda: one.claim(as_cluster(table), "a"))
    assert claim.index == 1


def test_a_claim_whose_answer_never_came_is_not_held(table: Table) -> None:
    table.submit("a")
    one = guest()
    run = table.scripts.run

    def cut(name: str, *args: str | int) -> list[str]:
        answer = run(name, *args)
        if name == "claim":
            raise redis.ConnectionError("cut")
        return answer

    table.scripts.run = cut  # type: ignore[method-assign]
    with pytest.raises((ClusterUnavailable, redis.RedisError)):
        one.claim(as_cluster(table), "a")
    table.scripts.run = run  # type: ignore[method-assign]
    until(lambda: table.jobs.item_states("a")[0].state == "pending")
    assert one.claim(as_cluster(table), "a") is not None
