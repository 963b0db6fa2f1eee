"""Workers on the collector's own host: their results go through its memory and not through the blob Redis, and nothing stays there."""
from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import redis

from tests.blob_server import BlobServer
from tests.cluster_fixtures import open_rig
from tests.cluster_rig import Rig, left_in_memory
from tests.command_line import slow, until

pytestmark = [pytest.mark.redis, pytest.mark.skipif(sys.platform != "linux", reason="shared memory is used on Linux")]

ITEMS = 6


@pytest.fixture(params=["1", "0"], ids=["memory", "redis"])
def rig(request: pytest.FixtureRequest, redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    monkeypatch.setenv("DC_SHARED_MEMORY", request.param)
    server = BlobServer(request.getfixturevalue("redis_server").program, tmp_path / "blobs")
    with open_rig("builtin", SimpleNamespace(state_url=redis_url, blob_url=server.url), tmp_path / "rig") as rig:
        yield rig
    server.kill()


def received(rig: Rig) -> int:
    with redis.Redis.from_url(rig.cluster.blob_url) as client:
        stats: Any = client.info("stats")
        return int(stats["total_net_input_bytes"])


def test_the_same_pictures_come_home_by_either_way_and_only_one_fills_the_redis(rig: Rig, request: pytest.FixtureRequest) -> None:
    sent = received(rig)
    done = rig.run(slow(0), items=ITEMS)
    batch = done.batch("collect")
    assert len(batch) == ITEMS
    pictures, moved = batch.nbytes, received(rig) - sent
    assert (moved < pictures) == (os.environ["DC_SHARED_MEMORY"] == "1"), (moved, pictures)
    assert not left_in_memory(done.job_id)


def test_a_worker_that_is_killed_with_an_item_costs_nothing_and_leaves_nothing(rig: Rig) -> None:
    undisturbed = rig.run(slow(0), items=ITEMS).batch("collect")
    job = rig.begin(slow(300), items=ITEMS)
    until(lambda: rig.executions(job.queued()))
    victim = next(state for state in rig.cluster.workers.workers() if state.claims)
    os.kill(victim.facts.pid, signal.SIGKILL)
    assert job.wait().batch("collect").tobytes() == undisturbed.tobytes()
    assert not left_in_memory(job.queued())
