"""Servers that go away under a running worker or master: what is finished is not lost, and no thread dies of it."""
from __future__ import annotations

import threading
import time
from types import SimpleNamespace
from typing import Any, cast

import pytest
import redis

from distributed_comfy.errors import ConnectionLost, RedisRefusesWrites, RedisUnreachable
from distributed_comfy.orchestrator.ownership import Ownership
from distributed_comfy.settings import read_settings
from distributed_comfy.state.scripts import Scripts
from tasks.cluster import Cluster
from tasks.run_item import _patiently


class FailingTable:
    """A job table that counts owner renewals, and says what `lost` tells it to."""

    def __init__(self) -> None:
        self.renewed = 0
        self.taken_over = False

    def own(self, job_id: str, owner: str) -> bool:
        self.renewed += 1
        return not self.taken_over

    def owner(self, job_id: str) -> str:
        return "somebody else"

    def disown(self, job_id: str, owner: str) -> None:
        pass


def cluster_with(table: FailingTable, reap: Any) -> Cluster:
    settings = read_settings(owner_ttl_s=0.08, reaper_interval_s=0.02)

    def drop(job_id: str) -> None:
        raise ConnectionLost(target="the blob Redis", reason="refused")

    workers, blobs = SimpleNamespace(reap=reap), SimpleNamespace(drop_job=drop)
    return cast(Cluster, SimpleNamespace(settings=settings, jobs=table, workers=workers, blobs=blobs, client=None, invites=None))


def wait_until(reached: Any, timeout_s: float = 5.0) -> bool:
    deadline = time.monotonic() + timeout_s
    while not reached() and time.monotonic() < deadline:
        time.sleep(0.01)
    return bool(reached())


def test_an_owner_goes_on_renewing_while_the_blob_server_is_away() -> None:
    table = FailingTable()
    found = SimpleNamespace(gone=(), abandoned=("j1",))
    with Ownership(cluster_with(table, lambda process_id: found), "j", "me"):
        assert wait_until(lambda: table.renewed >= 4)


def test_an_owner_goes_on_renewing_after_an_error_of_the_reaper() -> None:
    table = FailingTable()

    def reap(process_id: str) -> Any:
        raise ConnectionLost(target="a server", reason="reset")

    with Ownership(cluster_with(table, reap), "j", "me"):
        assert wait_until(lambda: table.renewed >= 4)


def test_an_owner_whose_job_was_taken_over_says_so_and_stops_renewing() -> None:
    table = FailingTable()
    table.taken_over = True
    found = SimpleNamespace(gone=(), abandoned=())
    with Ownership(cluster_with(table, lambda process_id: found), "j", "me") as ownership:
        assert ownership.lost.wait(5)
        time.sleep(0.2)
        assert table.renewed == 1


def worker(*, stopped: bool = False) -> Any:
    return SimpleNamespace(name="w", stopped=stopped, draining=threading.Event())


def test_a_finished_result_waits_for_a_table_that_is_away() -> None:
    answers: list[Any] = [RedisUnreachable(url="u", reason="refused", setting="s"), redis.ResponseError("OOM"), True]

    def tell() -> bool:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return bool(answer)

    assert _patiently(worker(), tell) is True
    assert answers == []


def test_a_worker_that_is_told_to_end_does_not_wait_for_the_table() -> None:
    def tell() -> bool:
        raise RedisUnreachable(url="u", reason="refused", setting="s")

    with pytest.raises(RedisUnreachable):
        _patiently(worker(stopped=True), tell)


def test_a_server_that_takes_no_changes_is_named_with_a_remedy(redis_url: str) -> None:
    with redis.Redis.from_url(redis_url, decode_responses=True) as client:
        scripts = Scripts(client, "dc:", lambda workers: None)
        client.config_set("maxmemory", "1")
        try:
            with pytest.raises(RedisRefusesWrites, match="maxmemory"):
                scripts.reply(lambda: client.set("a", "b"))
        finally:
            client.config_set("maxmemory", "0")
