"""A worker that is told to end: it finishes the item that it has, but not for longer than DC_DRAIN_TIMEOUT_S."""
from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from distributed_comfy.messages import Prompt
from tests.cluster_fixtures import open_rig
from tests.cluster_rig import Rig, RunningJob
from tests.command_line import pictures, slow, until
from tests.prompts import node, out

pytestmark = [pytest.mark.redis, pytest.mark.timeout(120)]

LIMIT_S = 2.0


@pytest.fixture
def lonely(cluster_servers: Any, tmp_path: Path) -> Iterator[Rig]:
    """A cluster of one worker, ``w``, which has run something: its engine loads nothing any more."""
    with open_rig("builtin", cluster_servers, tmp_path / "rig", prefix=f"drain-{tmp_path.name[-20:]}:", names=()) as rig:
        rig.start("w", drain_timeout_s=LIMIT_S, lease_ttl_s=2.0, renew_interval_s=0.3)
        rig.run(slow(0), items=1)
        yield rig


def in_steps(count: int) -> Prompt:
    """Each picture after so many tenths of a second, between which an engine heeds an interrupt."""
    prompt, last = pictures(), "make"
    for step in range(count):
        prompt[f"step{step}"] = node("RuleStep", images=out(last), milliseconds=100)
        last = f"step{step}"
    prompt["collect"]["inputs"]["images"] = out(last)
    return prompt


def end_at_work(rig: Rig, steps: int) -> tuple[RunningJob, float]:
    """Tell the worker to end in the middle of an item; the job, and how long the worker took."""
    job = rig.begin(in_steps(steps), items=2)
    job_id = job.queued()
    until(lambda: rig.executions(job_id))
    time.sleep(0.3)
    began = time.monotonic()
    rig.workers["w"].process.send_signal(signal.SIGTERM)
    assert rig.workers["w"].process.wait(30) == 0, rig.logs()
    return job, time.monotonic() - began


def states(rig: Rig, job: RunningJob) -> list[str]:
    return [item.state for _, item in sorted(rig.cluster.jobs.item_states(job.report.job_id).items())]


def test_a_worker_that_is_told_to_end_finishes_its_item_and_takes_no_other(lonely: Rig) -> None:
    job, _ = end_at_work(lonely, steps=12)
    assert states(lonely, job) == ["done", "pending"]
    assert len(lonely.executions(job.report.job_id)) == 1
    lonely.start("w")
    assert sorted(job.wait().done.results) == [0, 1]
    assert len(lonely.executions(job.report.job_id)) == 2


def test_an_item_that_takes_longer_than_that_is_given_back(lonely: Rig) -> None:
    job, took_s = end_at_work(lonely, steps=100)
    assert LIMIT_S - 0.1 < took_s < LIMIT_S + 5
    assert states(lonely, job) == ["pending", "pending"]
    job.stop.set()
    job.wait()
