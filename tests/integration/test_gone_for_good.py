"""What is left of a worker that is killed and never comes back: nothing, whoever reaps and whenever that one dies."""
from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tasks.dispatch import send_tickets
from tasks.reaper import reap_once
from tests.cluster_fixtures import open_rig
from tests.cluster_rig import Rig
from tests.command_line import slow, until

pytestmark = [pytest.mark.redis, pytest.mark.timeout(240)]

TIMES: dict[str, Any] = {"lease_ttl_s": 2.0, "renew_interval_s": 0.3, "reaper_interval_s": 0.3}
LASTING = {"reaper-facts", "tallies", "limits", "sequence", "served", "inflight", "celery:_kombu.binding_deadlines"}
"""Keys of the cluster as a whole; those that expire by themselves do not count either."""


@pytest.fixture
def rig(cluster_servers: Any, tmp_path: Path) -> Iterator[Rig]:
    """A cluster without workers, on whose servers there is nothing else of its prefix."""
    with open_rig("builtin", cluster_servers, tmp_path / "rig", prefix="gone:", names=()) as rig:
        yield rig
        for key in rig.cluster.client.scan_iter("gone:*"):
            rig.cluster.client.delete(key)


def lasting(rig: Rig) -> set[str]:
    """Keys that nobody will remove, of all databases of the server."""
    client: Any = rig.cluster.client
    return {key.removeprefix("gone:") for key in client.scan_iter("*") if "gone:" in key and client.ttl(key) == -1} - LASTING


def reap_until(rig: Rig, gone: str) -> None:
    """As a master does while it waits; the worker that is gone was the only one."""
    deadline = time.monotonic() + 30
    while rig.cluster.client.sismember("gone:workers", gone):
        assert time.monotonic() < deadline
        reap_once(rig.cluster, "master")
        time.sleep(0.3)


def test_a_killed_worker_leaves_no_key(rig: Rig) -> None:
    assert lasting(rig) == set()
    worker = rig.start("w", **TIMES)[0]
    job = rig.begin(slow(60_000), items=2)
    job_id = job.queued()
    until(lambda: rig.executions(job_id))
    worker.kill()
    rig.workers.pop("w")
    send_tickets(rig.cluster.app, ["w", "w"])
    job.stop.set()
    job.wait()
    reap_until(rig, "w")
    assert {key for key in lasting(rig) if not key.startswith("job:")} - {"jobs", "ended"} == set()


def test_a_worker_that_lives_stays_bound_when_another_is_gone(rig: Rig) -> None:
    """Two names that begin alike, one of them with the device in Celery's name for it."""
    killed, living = rig.start("w", "w-cpu", **TIMES)
    bound = "gone:celery:_kombu.binding.celery.pidbox"
    until(lambda: rig.cluster.client.scard(bound) == 2)
    killed.kill()
    rig.workers.pop("w")
    reap_until(rig, "w")
    until(lambda: rig.cluster.client.scard(bound) == 1)
    assert "w-cpu@" in rig.cluster.client.smembers(bound).pop() and living.process.poll() is None
