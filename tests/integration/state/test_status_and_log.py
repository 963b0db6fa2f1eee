"""The status and the log of workers in Redis: who may tell, who hears it, what vanishes and when, and how long a stream grows."""
from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from distributed_comfy.errors import SettingInvalid
from distributed_comfy.messages import dump
from distributed_comfy.settings import read_settings
from distributed_comfy.state.status import WorkerStatus
from distributed_comfy.state.status_board import StatusAnswer, StatusBoard
from distributed_comfy.state.worker_log import LogLine, WorkerLogs
from tests.state_cluster import Cluster

pytestmark = pytest.mark.redis
MINUTE_MS = 60_000
WEEK_MS = 604_800_000


def status_of(name: str, **facts: Any) -> WorkerStatus:
    return WorkerStatus(**{"name": name, "host": "pc1", "device": "cuda:0", "state": "idle", "since_ms": 5, **facts})


def tell(cluster: Cluster, status: WorkerStatus, incarnation: str = "", ttl_ms: int = MINUTE_MS) -> StatusAnswer:
    return StatusBoard(cluster.scripts).publish(status, incarnation or f"life-of-{status.name}", ttl_ms=ttl_ms, log_ttl_ms=MINUTE_MS)


def append(cluster: Cluster, name: str, *texts: str, batch: str = "b", keep_lines: int = 1000) -> None:
    lines = [LogLine("engine", "INFO", text) for text in texts]
    WorkerLogs(cluster.scripts).append(name, lines, batch, keep_lines=keep_lines, keep_ms=MINUTE_MS)


# -- status -------------------------------------------------------------------------------------------------------------
def test_a_status_is_read_as_it_was_told_and_the_answer_knows_the_clock(cluster: Cluster) -> None:
    told = status_of("v", reason="why not", items_done=3)
    answer = tell(cluster, told)
    assert answer.entered and not answer.drained
    assert abs(answer.now_ms - cluster.now_ms()) < 5000
    board = StatusBoard(cluster.scripts)
    assert board.read(["v", "w"]) == {"v": told} and board.read([]) == {}


def test_a_status_vanishes_by_itself(cluster: Cluster) -> None:
    tell(cluster, status_of("v"), ttl_ms=100)
    time.sleep(0.2)
    assert StatusBoard(cluster.scripts).read(["v"]) == {}


def test_a_status_of_another_version_is_as_good_as_none(cluster: Cluster) -> None:
    cluster.client.set(cluster.key("status", "v"), dump(status_of("v")).replace('"version":1', '"version":99'))
    assert StatusBoard(cluster.scripts).read(["v"]) == {}


def test_only_the_life_that_has_the_name_may_tell_its_status(cluster: Cluster) -> None:
    cluster.join("v")
    assert tell(cluster, status_of("v")).entered
    assert not tell(cluster, status_of("v", state="down"), incarnation="another").entered
    assert StatusBoard(cluster.scripts).read(["v"])["v"].state == "idle"


def test_a_worker_that_starts_may_tell_before_it_is_on_the_table(cluster: Cluster) -> None:
    assert tell(cluster, status_of("new", state="starting")).entered


def test_the_answer_says_that_somebody_drained_the_worker(cluster: Cluster) -> None:
    cluster.join("v")
    cluster.jobs.drain("v")
    assert tell(cluster, status_of("v")).drained
    cluster.jobs.drain("v", drained=False)
    assert not tell(cluster, status_of("v")).drained


def test_the_status_goes_with_a_worker_that_leaves_and_does_not_come_back(cluster: Cluster) -> None:
    cluster.join("v")
    tell(cluster, status_of("v"))
    cluster.workers.leave("v", "life-of-v")
    assert StatusBoard(cluster.scripts).read(["v"]) == {}
    assert not tell(cluster, status_of("v")).entered, "one that was under way when it left"
    assert StatusBoard(cluster.scripts).read(["v"]) == {}


def test_one_subscription_hears_all_workers(cluster: Cluster) -> None:
    stop, heard = threading.Event(), []

    def listen() -> None:
        for status in StatusBoard(cluster.scripts).watch(stop):
            heard.append((status.name, status.items_done))

    with ThreadPoolExecutor(1) as threads:
        listening = threads.submit(listen)
        while not cluster.client.pubsub_numpat():
            time.sleep(0.01)
        cluster.client.publish(cluster.key("statuses", "v"), "nonsense")
        for number in range(3):
            for name in ("v", "w"):
                tell(cluster, status_of(name, items_done=number))
        deadline = time.monotonic() + 10
        while len(heard) < 6 and time.monotonic() < deadline:
            time.sleep(0.01)
        stop.set()
        listening.result(5)
    assert heard == [(name, number) for number in range(3) for name in ("v", "w")]


# -- log ----------------------------------------------------------------------------------------------------------------
def test_lines_come_back_in_order_with_the_time_of_redis(cluster: Cluster) -> None:
    append(cluster, "v", "one", "two", batch="1")
    append(cluster, "v", "three", batch="2")
    found = WorkerLogs(cluster.scripts).last("v", 2)
    assert [(line.source, line.level, line.text) for line in found] == [("engine", "INFO", "two"), ("engine", "INFO", "three")]
    assert abs(found[0].at_ms - cluster.now_ms()) < 5000
    assert WorkerLogs(cluster.scripts).last("v", 0) == [] == WorkerLogs(cluster.scripts).last("nobody", 5)


def test_a_batch_that_is_sent_twice_is_there_once(cluster: Cluster) -> None:
    for _ in range(2):
        append(cluster, "v", "one", "two", batch="1")
    assert [line.text for line in WorkerLogs(cluster.scripts).last("v", 10)] == ["one", "two"]


def test_a_reader_waits_for_what_comes_next(cluster: Cluster) -> None:
    logs = WorkerLogs(cluster.scripts)
    append(cluster, "v", "one", batch="1")
    after = logs.last("v", 1)[0].entry_id
    assert logs.after("v", after, 20) == []
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(logs.after, "v", after, 1000)
        time.sleep(0.1)
        append(cluster, "v", "two", batch="2")
        assert [line.text for line in waiting.result(5)] == ["two"]
    assert [line.text for line in logs.after("v", "0", 20)] == ["one", "two"]


def test_the_stream_stays_capped(cluster: Cluster) -> None:
    for batch in range(100):
        append(cluster, "v", *(f"{batch} {number}" for number in range(50)), batch=str(batch), keep_lines=300)
    length = cluster.client.xlen(cluster.key("log", "v"))
    assert 300 <= length <= 300 + 100, "Redis drops whole nodes of a hundred entries"
    assert WorkerLogs(cluster.scripts).last("v", 1)[0].text == "99 49"


def test_a_log_lives_as_long_as_the_worker_tells_its_status_and_then_a_while(cluster: Cluster) -> None:
    append(cluster, "v", "one")
    key = cluster.key("log", "v")
    cluster.client.pexpire(key, 1000)
    tell(cluster, status_of("v"))
    assert cluster.client.pttl(key) > MINUTE_MS - 5000
    assert WorkerLogs(cluster.scripts).names() == ["v"]


@pytest.mark.parametrize("number", ["999999999", "1e300", "inf", "nan", "-5", "x"])
def test_the_bounds_of_a_log_are_not_its_callers(cluster: Cluster, number: str) -> None:
    cluster.scripts.run("log", "v", "b" * 1000, number, number, "engine", "INFO", "y" * 100_000)
    key = cluster.key("log", "v")
    assert cluster.client.pttl(key) <= WEEK_MS
    for entry in cluster.client.xrange(key):
        assert sum(map(len, entry[1].values())) < 10_000
    assert StatusBoard(cluster.scripts).publish(status_of("v"), "life", ttl_ms=10**12, log_ttl_ms=10**12).entered
    assert cluster.client.pttl(key) <= WEEK_MS and cluster.client.pttl(cluster.key("status", "v")) <= WEEK_MS


def test_a_caller_that_asks_for_a_stream_without_end_gets_what_the_settings_allow(cluster: Cluster) -> None:
    for batch in range(50):
        lines = ["engine", "INFO", "x"] * 500
        cluster.scripts.run("log", "v", str(batch), 10**9, MINUTE_MS, *lines)
    assert cluster.client.xlen(cluster.key("log", "v")) <= 20_100
    with pytest.raises(SettingInvalid):
        read_settings(log_lines=20_001)
    with pytest.raises(SettingInvalid):
        read_settings(log_ttl_s=WEEK_MS / 1000 + 1)
