"""A part of a worker hangs, really: whoever watches it ends the worker, and another process of the same name goes on."""
from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster_fixtures import open_rig
from tests.cluster_rig import Rig
from tests.command_line import slow, until

pytestmark = [pytest.mark.redis, pytest.mark.timeout(240)]

HANG_S = 3.0
TIMES: dict[str, Any] = {"lease_ttl_s": 2.0, "renew_interval_s": 0.3, "reaper_interval_s": 0.3, "hang_timeout_s": HANG_S}


@pytest.fixture
def lonely(cluster_servers: Any, tmp_path: Path) -> Iterator[Rig]:
    """A cluster of one worker, ``w``."""
    with open_rig("builtin", cluster_servers, tmp_path / "rig", prefix=f"hang-{tmp_path.name[-20:]}:", names=()) as rig:
        rig.start("w", **TIMES)
        yield rig


def comes_back(rig: Rig) -> None:
    """As an agent would do it: the ended process is replaced by another of the same name."""
    rig.workers.pop("w").folder.rename(rig.folder / "ended")
    rig.start("w", **TIMES)


def test_a_consumer_that_hangs_ends_its_worker_and_the_job_goes_on_with_another(lonely: Rig) -> None:
    hung = lonely.workers["w"]
    hung.process.send_signal(signal.SIGUSR1)
    job = lonely.begin(slow(0), items=3)
    began = time.monotonic()
    until(lambda: hung.process.poll() is not None, timeout_s=40)
    assert time.monotonic() - began > HANG_S - 0.5
    assert hung.process.returncode == 1
    assert "worker w: its consumer has not moved for 3 s" in hung.log() and "connects anew" in hung.log()
    comes_back(lonely)
    assert sorted(job.wait().done.results) == [0, 1, 2]


def test_a_lease_thread_that_hangs_ends_its_worker_and_its_item_goes_back(lonely: Rig) -> None:
    hung = lonely.workers["w"]
    job = lonely.begin(slow(60_000), items=1)
    job_id = job.queued()
    until(lambda: lonely.executions(job_id))
    hung.process.send_signal(signal.SIGUSR2)
    until(lambda: hung.process.poll() is not None, timeout_s=40)
    assert hung.process.returncode == 1 and "its lease thread has not moved for 3 s" in hung.log()
    until(lambda: lonely.cluster.jobs.item_states(job_id)[0].state == "pending", timeout_s=10)
    job.stop.set()
    job.wait()


def test_a_worker_that_was_stopped_for_longer_than_that_goes_on(lonely: Rig) -> None:
    worker = lonely.workers["w"]
    worker.process.send_signal(signal.SIGSTOP)
    time.sleep(HANG_S * 2)
    worker.process.send_signal(signal.SIGCONT)
    until(lambda: lonely.state("w"))
    assert sorted(lonely.run(slow(0), items=2).done.results) == [0, 1]
    assert worker.process.poll() is None
