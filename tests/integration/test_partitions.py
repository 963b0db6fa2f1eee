"""A network that fails between one worker and Redis: packets lost without a word, connections reset; short and longer than the lease."""
from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import pytest
from numpy.typing import NDArray

from distributed_comfy.engine.options import EngineOptions
from distributed_comfy.errors import ConnectionLost, RedisUnreachable
from distributed_comfy.messages import Prompt
from distributed_comfy.settings import read_settings
from tasks.app import make_app
from tasks.cluster import Cluster, open_cluster
from tasks.dispatch import send_tickets
from tasks.runtime import WorkerRuntime
from tests.cluster_rig import JobReport, Rig, RunningJob, WorkerProcess
from tests.command_line import pictures, until
from tests.partition_proxy import PartitionProxy, network_to
from tests.prompts import node, out

pytestmark = [pytest.mark.redis, pytest.mark.timeout(60)]

LEASE_S, RENEW_S, TICK_S = 2.0, 0.5, 1.0
ANSWER_S = 2.0
"""After this long without an answer a connection is given up."""
SLACK_S = 2.5
"""For a machine that does other things as well."""


@dataclass(frozen=True)
class Far:
    """A worker behind a network of its own; two others stand beside Redis."""

    rig: Rig
    process: WorkerProcess
    state: PartitionProxy
    blobs: PartitionProxy

    def said(self, text: str) -> int:
        """How often its log says this."""
        return self.process.log().count(text)

    def has_begun(self, job: RunningJob) -> tuple[int, str, int]:
        """Wait until its engine has begun an item of the job: index, claim, engine process."""
        job.queued()

        def begun() -> Any:
            state = self.rig.state("far")
            mine = {int(item.rpartition("-")[2]) for item in state.claims} if state else set()
            return [row for row in self.rig.executions(job.report.job_id) if row[0] in mine]

        found: tuple[int, str, int] = job.until(begun, timeout_s=20)[0]
        return found

    def is_free(self) -> bool:
        """Whether it is on the table and holds nothing."""
        state = self.rig.state("far")
        return state is not None and not state.claims


@pytest.fixture(scope="module")
def networks(builtin_rig: Rig) -> Iterator[Far]:
    cluster = builtin_rig.cluster
    with network_to(cluster.redis_url) as state, network_to(cluster.blob_url) as blobs:
        timing = {"lease_ttl_s": LEASE_S, "renew_interval_s": RENEW_S, "reaper_interval_s": TICK_S}
        process = builtin_rig.start("far", redis_url=state.url, blob_url=blobs.url, worker_tags="far", **timing)[0]
        yield Far(builtin_rig, process, state, blobs)
        builtin_rig.stop("far")


@pytest.fixture
def far(networks: Far) -> Iterator[Far]:
    yield networks
    networks.state.go_on()
    networks.blobs.go_on()
    networks.rig.wait_idle()


@pytest.fixture(scope="module")
def undisturbed(builtin_rig: Rig) -> NDArray[Any]:
    """The pictures of a job that nothing happens to."""
    return builtin_rig.run(pictures(), items=9).batch("collect")


def in_steps(milliseconds: int) -> Prompt:
    """An item that takes its time in steps of a tenth of a second, between which it can be interrupted."""
    prompt, last = pictures(), "make"
    for step in range(milliseconds // 100):
        prompt[f"wait{step}"] = node("RuleSlow", images=out(last), milliseconds=100)
        last = f"wait{step}"
    prompt["collect"]["inputs"]["images"] = out(last)
    return prompt


def check(far: Far, report: JobReport, undisturbed: NDArray[Any], twice: set[int]) -> None:
    """Every item counted once and as without disturbance; only the lost ones were executed twice."""
    assert report.done.error is None
    items = len(report.arrived)
    assert sorted(report.arrived) == list(range(items))
    state = far.rig.cluster.jobs.job_state(report.job_id)
    assert (state.state, state.counts["done"]) == ("done", items)
    assert numpy.array_equal(report.batch("collect"), undisturbed[:items])
    counted = Counter(index for index, _, _ in far.rig.executions(report.job_id))
    assert counted == {index: 2 if index in twice else 1 for index in range(items)}


@contextmanager
def others_drained(rig: Rig) -> Iterator[None]:
    """So that the far worker gets the first item, and another is free to take it over."""
    for name in ("one", "two"):
        rig.cluster.jobs.drain(name)
    try:
        yield
    finally:
        for name in ("one", "two"):
            rig.cluster.jobs.drain(name, drained=False)


def work_alone(far: Far, items: int = 2) -> tuple[JobReport, float]:
    """A job that only the far worker can do, and how long it took."""
    began = time.monotonic()
    report = far.rig.run(pictures(), items=items, tags=("far",))
    return report, time.monotonic() - began


# -- tickets that nobody reads -----------------------------------------------------------------------------------------------
@pytest.fixture
def cluster(redis_url: str, blob_url: str) -> Iterator[Cluster]:
    cluster = open_cluster(read_settings(key_prefix="unread:", slots=2), redis_url, blob_url)
    yield cluster
    cluster.close()


@pytest.fixture
def restarts() -> list[str]:
    return []


@pytest.fixture
def runtime(cluster: Cluster, restarts: list[str], tmp_path: Path) -> WorkerRuntime:
    return WorkerRuntime(cluster, "w", engine_options(tmp_path), lambda: restarts.append("restart"))


def engine_options(folder: Path) -> EngineOptions:
    """Of an engine that is never started."""
    return EngineOptions(engine="builtin", worker="w", python="python", folder=folder, log_file=folder / "log", blob_url="")


def look(runtime: WorkerRuntime, times: int) -> None:
    for _ in range(times):
        runtime._check_queue()


def test_unread_tickets_restart_the_consumer_after_three_ticks_and_then_less_often(runtime: WorkerRuntime, restarts: list[str]) -> None:
    look(runtime, 9)
    assert restarts == [], "there is no ticket"
    send_tickets(runtime.cluster.app, ["w"])
    look(runtime, 2)
    assert restarts == []
    look(runtime, 1)
    assert restarts == ["restart"]
    look(runtime, 5)
    assert restarts == ["restart"], "it has six ticks to connect"
    look(runtime, 1)
    assert restarts == ["restart"] * 2
    look(runtime, 11)
    assert restarts == ["restart"] * 2, "through a slow network it takes longer"
    look(runtime, 1)
    assert restarts == ["restart"] * 3
    runtime.cluster.client.delete("unread:celery:gpu.w")
    look(runtime, 1)
    send_tickets(runtime.cluster.app, ["w"])
    look(runtime, 3)
    assert restarts == ["restart"] * 4, "it had connected"


def test_an_empty_queue_in_between_starts_the_count_anew(runtime: WorkerRuntime, restarts: list[str]) -> None:
    send_tickets(runtime.cluster.app, ["w"])
    look(runtime, 2)
    runtime.cluster.client.delete("unread:celery:gpu.w")
    look(runtime, 1)
    send_tickets(runtime.cluster.app, ["w"])
    look(runtime, 2)
    assert restarts == []


def test_tickets_wait_for_a_worker_only_while_all_its_slots_are_taken(runtime: WorkerRuntime, restarts: list[str]) -> None:
    send_tickets(runtime.cluster.app, ["w"])
    claims = [runtime.held.new() for _ in range(2)]
    look(runtime, 9)
    assert restarts == []
    runtime.held.drop(claims[0])
    look(runtime, 3)
    assert restarts == ["restart"]


@pytest.mark.parametrize("word", [b"BRPOP", b"\r\nLPUSH"], ids=["reads", "sends"])
def test_a_worker_whose_one_broker_connection_goes_silent_goes_on_by_itself(far: Far, word: bytes) -> None:
    work_alone(far)  # so that each of its connections has been used
    said = {text: far.said(text) for text in ("declared dead", "connects anew", "Connection to broker lost")}
    assert far.state.silence(word) >= 1
    report, took_s = work_alone(far, 3)
    assert report.done.error is None
    assert sorted(index for index, _, _ in far.rig.executions(report.job_id)) == [0, 1, 2], "exactly once"
    told = {text: far.said(text) - before for text, before in said.items()}
    bound_s = {b"BRPOP": 3 * RENEW_S + TICK_S, b"\r\nLPUSH": ANSWER_S + TICK_S}[word] + SLACK_S
    assert took_s < bound_s, f"{took_s:.1f} s, {told}"
    assert told["declared dead"] == 0, told
    if word == b"BRPOP":
        assert (told["connects anew"], told["Connection to broker lost"]) == (1, 1), f"{took_s:.1f} s, {told}"


def test_neither_a_lease_nor_a_ticket_waits_long_for_a_silent_connection(redis_url: str, blob_url: str) -> None:
    settings = read_settings(key_prefix="silent:")
    with network_to(redis_url) as state:
        cluster = open_cluster(settings, state.url, blob_url)
        try:
            send_tickets(cluster.app, ["w"])
            state.renew()
            began = time.monotonic()
            assert not cluster.workers.renew("w", "nobody", []).alive
            renewed_s = time.monotonic() - began
            with pytest.raises(RedisUnreachable):
                send_tickets(cluster.app, ["w"])
            took_s = time.monotonic() - began
        finally:
            cluster.close()
    assert renewed_s < settings.lease_ttl_s - settings.renew_interval_s - 0.5, f"renewed after {renewed_s:.1f} s"
    assert took_s < settings.lease_ttl_s, f"both after {took_s:.1f} s"


def test_a_worker_that_hears_no_orders_for_a_lease_asks_and_then_connects_anew(redis_url: str, blob_url: str, tmp_path: Path) -> None:
    with network_to(redis_url) as state, ThreadPoolExecutor(1) as threads:
        cluster = open_cluster(read_settings(key_prefix="orders:", lease_ttl_s=0.3), state.url, blob_url)
        runtime = WorkerRuntime(cluster, "w", engine_options(tmp_path), lambda: None)
        listening = threads.submit(runtime._listen)
        time.sleep(1.5)
        assert not listening.done(), "every question was answered"
        state.renew()
        try:
            with pytest.raises(ConnectionLost):
                listening.result(timeout=5)
        finally:
            runtime._stopped.set()
            cluster.close()


class Enough(Exception):
    """Ends a search that would go on for ever."""


def test_a_worker_looks_for_a_broker_that_is_away_once_a_second() -> None:
    waits: list[float] = []

    def on_error(error: Exception, wait_s: float) -> None:
        waits.append(wait_s)
        if len(waits) == 3:
            raise Enough

    app = make_app(read_settings(), "redis://127.0.0.1:1/0")
    with pytest.raises(Enough), app.connection_for_read() as connection:
        connection.ensure_connection(on_error)
    assert waits == [1, 1, 1]


# -- partitions --------------------------------------------------------------------------------------------------------------
Cut = tuple[Callable[[Far], None], Callable[[Far], None]]


def stop(far: Far) -> None:
    far.state.stop()
    far.blobs.stop()


def refuse(far: Far) -> None:
    far.state.refuse()
    far.blobs.refuse()


def go_on(far: Far) -> None:
    far.state.go_on()
    far.blobs.go_on()


def renew(far: Far) -> None:
    far.state.renew()
    far.blobs.go_on()


LONG = {"held back": (stop, go_on, 4500), "silent for good": (stop, renew, 1000), "refused": (refuse, go_on, 1000)}
SHORT = {"held back": (stop, go_on), "refused": (refuse, go_on)}


@pytest.mark.parametrize("kind", LONG)
def test_a_partition_longer_than_the_lease_costs_one_execution(far: Far, undisturbed: NDArray[Any], kind: str) -> None:
    cut, heal, milliseconds = LONG[kind]
    dead, given_back = far.said("was declared dead"), far.said("is given back")
    with others_drained(far.rig):
        job = far.rig.begin(in_steps(milliseconds), items=2)
        index, claim, engine = far.has_begun(job)
    cut(far)
    began = time.monotonic()
    job.until(lambda: [row for row in far.rig.executions(job.report.job_id) if row[:2] != (index, claim) and row[0] == index], timeout_s=20)
    again_s = time.monotonic() - began
    heal(far)
    until(lambda: far.said("was declared dead") > dead, timeout_s=15)
    told_s = time.monotonic() - began - again_s
    until(far.is_free, timeout_s=15)
    free_s = time.monotonic() - began - again_s
    report, alone_s = work_alone(far)
    times = f"elsewhere after {again_s:.1f} s; after healing: told {told_s:.1f} s, free {free_s:.1f} s, then a job alone {alone_s:.1f} s"
    assert {pid for _, _, pid in far.rig.executions(report.job_id)} == {engine}, "the engine lives on"
    check(far, job.wait(), undisturbed, {index})
    assert again_s < LEASE_S + TICK_S + SLACK_S, times
    assert told_s < ANSWER_S + RENEW_S + SLACK_S, times
    # Where all connections have died, the result's and the acknowledgement's are waited for in turn, then tickets lie for three ticks.
    assert alone_s < 2 * ANSWER_S + 3 * RENEW_S + TICK_S + SLACK_S, times
    if milliseconds > 1000:
        assert far.said("is given back") == given_back + 1 and free_s < 1.0 + SLACK_S, f"it was not interrupted: {times}"
    until(lambda: not far.rig.cluster.blob_client.keys(f"*{claim}*"), timeout_s=10)  # what was refused is deleted


@pytest.mark.parametrize("kind", SHORT)
def test_a_partition_shorter_than_the_lease_changes_nothing(far: Far, undisturbed: NDArray[Any], kind: str) -> None:
    cut, heal = SHORT[kind]
    dead = far.said("declared dead")
    job = far.rig.begin(in_steps(300), items=9)
    far.has_begun(job)
    cut(far)
    time.sleep(LEASE_S / 3)
    heal(far)
    check(far, job.wait(), undisturbed, set())
    report, alone_s = work_alone(far)
    assert report.done.error is None
    assert far.said("declared dead") == dead
    assert alone_s < ANSWER_S + TICK_S + SLACK_S, f"it takes items again after {alone_s:.1f} s"
