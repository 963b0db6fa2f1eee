"""The panel with 100 workers and 1 000 jobs: what a look costs, and what a page is sent; the figures are in docs/panel-api.md."""
from __future__ import annotations

import json
import logging
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from distributed_comfy.orchestrator.servers import Servers
from distributed_comfy.panel.place import TakenOver
from distributed_comfy.panel.watch import Watch
from distributed_comfy.serve.panel_host import ServePlace
from tests.command_line import PROJECT
from tests.panel_crowd import JOBS, WORKERS, commands_of, crowd_settings, fill

log = logging.getLogger(__name__)
pytestmark = [pytest.mark.redis, pytest.mark.slow, pytest.mark.timeout(180)]

MEASURED_S = 10.0
TARGET = 0.05
"""Of a core, while nothing changes."""
_CLOSED = {"state": "closed", "url": "", "since_ms": 0, "error": None}


@contextmanager
def watched(url: str, on_change: Any) -> Iterator[Watch]:
    """A watch that one page looks at."""
    place = ServePlace(crowd_settings(), Servers(url, url, embedded=False), lambda text: TakenOver(), lambda ready, stop: None)
    watch = Watch(place, lambda: dict(_CLOSED))
    try:
        with watch.viewing(on_change):
            watch.state(30.0)
            time.sleep(4.0)  # it looks seldom once nothing changes
            yield watch
    finally:
        watch.end()
        time.sleep(0.7)
        place.end()


def measured(url: str, client: Any, watch: Watch) -> dict[str, float]:
    """What looking costs in this process, and the server, in a while."""
    before, cpu, began = commands_of(client), time.process_time(), time.monotonic()
    server = client.info("cpu")
    time.sleep(MEASURED_S)
    wall = time.monotonic() - began
    after = client.info("cpu")
    served = sum(after[name] - server[name] for name in ("used_cpu_user", "used_cpu_sys"))
    return {
        "share of a core": (time.process_time() - cpu) / wall, "commands/s": (commands_of(client) - before) / wall,
        "server's share": served / wall,
    }  # fmt: skip


@pytest.mark.parametrize("waiting", [10, JOBS], ids=["most-ended", "all-wait"])
def test_a_crowd_in_which_nothing_changes_costs_little(redis_url: str, waiting: int) -> None:
    cluster, told = fill(redis_url, waiting=waiting), []
    try:
        with watched(redis_url, lambda: told.append(time.monotonic())) as watch:
            state = watch.state()
            assert (len(state["workers"]), len(state["jobs"])) == (WORKERS, JOBS)
            assert sum(job["position"] > 0 for job in state["jobs"].values()) == waiting
            texts = []
            for _ in range(5):
                began = time.perf_counter()
                _, text = watch.snapshot("")
                texts.append((time.perf_counter() - began, len(text)))
            told.clear()
            found = measured(redis_url, cluster.client, watch)
        log.info("nothing changes, %d of %d jobs wait: %s, changes %d", waiting, JOBS, found, len(told))
        log.info("snapshot: %.1f ms, %d bytes", min(each for each, _ in texts) * 1000, texts[0][1])
        assert len(told) <= 1
        assert found["share of a core"] < TARGET, found
    finally:
        cluster.close()


def test_a_crowd_that_tells_all_the_time_is_told_on_at_most_four_times_a_second(redis_url: str) -> None:
    cluster, times = fill(redis_url, waiting=10), []
    teller = subprocess.Popen([sys.executable, "-m", "tests.panel_crowd", redis_url, "60"], cwd=PROJECT)
    try:
        with watched(redis_url, lambda: times.append(time.monotonic())) as watch:
            first = watch.snapshot("")[0]
            times.clear()
            found = measured(redis_url, cluster.client, watch)
            changes = watch.since(first) or []
        log.info("50 statuses a second: %s, %.1f changes/s of %.0f bytes", found, len(times) / MEASURED_S,
                 statistics.mean(len(change.text("")) for change in changes) if changes else 0)  # fmt: skip
        assert len(times) <= 4.5 * MEASURED_S
        assert any("workers" in json.loads(change.text("")) for change in changes)
    finally:
        teller.kill()
        teller.wait()
        cluster.close()
