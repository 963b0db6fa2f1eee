"""What a cluster survives: killed engines and workers, raising nodes, cancels; and how long it takes."""
from __future__ import annotations

import functools
import logging
import os
import signal
import time

import numpy
import pytest

from distributed_comfy.errors import JobCancelled, JobFailed
from tests.cluster_rig import JobReport, Rig, RunningJob
from tests.comfyui.test_cluster_models import loads, warm_up
from tests.comfyui.tiny_prompts import distributed
from tests.prompts import node, out

log = logging.getLogger(__name__)

ITEMS = 8
SLOW = {"slow": node("ProbeSteps", images=out("8"), steps=25, stubborn=False, salt=0)}
"""Half a second more for each item, so that it can be caught at work."""


@pytest.fixture(autouse=True)
def whole(comfyui_rig: Rig) -> None:
    """Each test finds both workers with a running engine, whatever the one before it killed."""
    comfyui_rig.wait_idle()


@pytest.fixture(scope="module")
def undisturbed(comfyui_rig: Rig) -> JobReport:
    """What the disturbed jobs must give."""
    return comfyui_rig.run(distributed(SLOW, "slow"), items=ITEMS)


def wait_back(rig: Rig, running: RunningJob, index: int, claim_id: str) -> float:
    """Seconds until the table has taken an item from a claim."""
    began = time.monotonic()

    def is_back() -> bool:
        item = rig.cluster.jobs.item_states(running.report.job_id)[index]
        return item.state != "running" or item.claim_id != claim_id

    running.until(is_back, timeout_s=20)
    return time.monotonic() - began


def assert_complete(rig: Rig, report: JobReport, undisturbed: JobReport, twice: set[int]) -> None:
    """All images, bit for bit, and every item executed once but these."""
    assert report.batch("9").tobytes() == undisturbed.batch("9").tobytes()
    assert sorted(file.name for file in report.done.files) == sorted(file.name for file in undisturbed.done.files)
    executed = [index for index, _, _ in rig.executions(report.job_id)]
    assert sorted(executed) == sorted([*range(ITEMS + 1), *twice])


def test_a_killed_engine_costs_its_item_a_second_execution_and_nothing_else(comfyui_rig: Rig, undisturbed: JobReport) -> None:
    running = comfyui_rig.begin(distributed(SLOW, "slow"), items=ITEMS)
    job_id = running.queued()
    running.until(lambda: len(comfyui_rig.executions(job_id)) >= 3)
    index, claim_id, pid = comfyui_rig.executions(job_id)[-1]
    os.kill(pid, signal.SIGKILL)
    back_s = wait_back(comfyui_rig, running, index, claim_id)
    report = running.wait()
    assert_complete(comfyui_rig, report, undisturbed, {index})
    assert back_s < 1.5, "target: 1 s"
    log.info("engine killed: item claimable after %.2f s", back_s)


def test_a_killed_worker_costs_its_item_a_second_execution_and_nothing_else(comfyui_rig: Rig, undisturbed: JobReport) -> None:
    third = comfyui_rig.start("three")[0]
    running = comfyui_rig.begin(distributed(SLOW, "slow"), items=ITEMS)
    job_id = running.queued()

    def third_at_work() -> tuple[int, str, int] | None:
        items = comfyui_rig.cluster.jobs.item_states(job_id)
        mine = {item.claim_id for item in items.values() if item.worker == "three" and item.state == "running"}
        return next((row for row in comfyui_rig.executions(job_id) if row[1] in mine), None)

    index, claim_id, engine_pid = running.until(third_at_work)
    third.kill()
    del comfyui_rig.workers["three"]
    back_s = wait_back(comfyui_rig, running, index, claim_id)
    assert not is_alive(engine_pid), "the engine does not outlive its worker"
    assert_complete(comfyui_rig, running.wait(), undisturbed, {index})
    assert back_s < 9, "target: 8 s"
    assert comfyui_rig.state("three") is None
    log.info("worker killed: item claimable after %.2f s", back_s)


def is_alive(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def has_executed(rig: Rig, job_id: str, times: int) -> bool:
    """Whether that many executions of a job have begun."""
    return len(rig.executions(job_id)) >= times


def test_an_engine_that_dies_of_the_same_item_again_and_again_fails_the_job(comfyui_rig: Rig) -> None:
    running = comfyui_rig.begin(distributed(SLOW, "slow"), items=1)
    job_id = running.queued()
    for attempt in range(1, 4):
        running.until(functools.partial(has_executed, comfyui_rig, job_id, attempt))
        os.kill(comfyui_rig.executions(job_id)[-1][2], signal.SIGKILL)
    error = running.wait().error
    assert isinstance(error, JobFailed) and "SIGKILL" in str(error)
    assert len(comfyui_rig.executions(job_id)) == 3


def test_a_cancelled_job_stops_sampling_at_once_and_leaves_the_models_loaded(comfyui_rig: Rig) -> None:
    before = warm_up(comfyui_rig)
    running = comfyui_rig.begin(distributed(steps=5000), items=2)
    for name in ("one", "two"):
        running.until(functools.partial(samples, running.report, name))
    began = time.monotonic()
    running.stop.set()
    assert isinstance(running.wait().error, JobCancelled)
    ended_s = time.monotonic() - began
    running.until(comfyui_rig.is_idle)
    idle_s = time.monotonic() - began
    assert ended_s < 2 and idle_s < 2, (ended_s, idle_s)
    comfyui_rig.run(distributed(seed=77), items=4)
    assert loads(comfyui_rig) == before
    log.info("cancelled: job ended after %.2f s, workers idle after %.2f s", ended_s, idle_s)


def samples(report: JobReport, worker: str) -> bool:
    """Whether a worker is in the middle of sampling."""
    return any(step.worker == worker and step.node_id == "7" and step.value > 2 for step in report.steps)


@pytest.mark.parametrize("delay_s", [0.0, 0.02, 0.05, 0.1, 0.2])
def test_a_cancel_at_any_moment_hits_this_job_and_no_other(comfyui_rig: Rig, delay_s: float) -> None:
    running = comfyui_rig.begin(distributed(steps=5000), items=3)
    running.queued()
    time.sleep(delay_s)
    running.stop.set()
    began = time.monotonic()
    assert isinstance(running.wait().error, JobCancelled)
    running.until(comfyui_rig.is_idle)
    assert time.monotonic() - began < 4
    assert len(comfyui_rig.run(distributed(), items=2).done.files) == 4


def test_an_engine_killed_in_the_last_stage_gets_all_images_fed_again(comfyui_rig: Rig) -> None:
    prompt = distributed()
    prompt["slow"] = node("RuleSlow", images=out("9"), milliseconds=1000)
    prompt["record"] = node("RuleRecord", images=out("slow"), label="last")
    running = comfyui_rig.begin(prompt, items=3)
    job_id = running.queued()
    running.until(lambda: (rows := comfyui_rig.executions(job_id)) and rows[-1][0] == 3)
    time.sleep(0.3)  # the images are read and unlinked by now
    os.kill(comfyui_rig.executions(job_id)[-1][2], signal.SIGKILL)
    report = running.wait()
    assert numpy.array(report.record("last")["images"], numpy.float32).tobytes() == report.batch("9").tobytes()
    assert sorted(index for index, _, _ in comfyui_rig.executions(job_id)) == [0, 1, 2, 3, 3]
    assert len(report.done.files) == 7
