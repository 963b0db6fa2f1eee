"""kill -9 in the middle of a job: of an engine, of a worker, of both; the job is complete and its pictures are the same."""
from __future__ import annotations

import os
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy
import psutil
import pytest

from tests.cluster_rig import Rig, WorkerProcess
from tests.command_line import CommandLine, pixels, slow, texts, until

pytestmark = [pytest.mark.redis, pytest.mark.timeout(240)]

ITEMS = 16
LEASE_S, RENEW_S = 3.0, 0.75


@pytest.fixture
def line(builtin_rig: Rig, tmp_path: Path) -> CommandLine:
    cluster = builtin_rig.cluster
    return CommandLine(
        tmp_path,
        DC_REDIS_URL=cluster.redis_url, DC_BLOB_URL=cluster.blob_url, DC_KEY_PREFIX=cluster.settings.key_prefix,
        DC_LEASE_TTL_S=str(LEASE_S), DC_RETRY_BACKOFF_S="0",
    )  # fmt: skip


@pytest.fixture
def victim(builtin_rig: Rig, request: pytest.FixtureRequest) -> WorkerProcess:
    """A third worker, which may die."""
    name = f"victim-{request.node.name.split('[')[-1].strip(']')[:20].replace('_', '-')}"
    return builtin_rig.start(name, lease_ttl_s=LEASE_S, renew_interval_s=RENEW_S)[0]


def engine_of(worker: WorkerProcess) -> psutil.Process:
    """The worker's engine process."""
    engines = [child for child in psutil.Process(worker.process.pid).children() if "boot.py" in " ".join(child.cmdline())]
    assert len(engines) == 1
    return engines[0]


def item_of(rig: Rig, worker: WorkerProcess) -> str:
    """The item that a worker has now; empty where it has none."""
    state = rig.state(worker.name)
    return state.claims[0] if state and state.claims else ""


def pngs(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.png"))


def undisturbed(line: CommandLine) -> list[Any]:
    """The pictures of the same job when nothing happens to it."""
    done = line.run("run", line.write("quiet.json", slow(0)), "--items", str(ITEMS), "--out", "quiet")
    assert done.status == 0, done.err
    return [pixels(path) for path in pngs(line.folder / "quiet")]


def disturbed(line: CommandLine, rig: Rig, worker: WorkerProcess, disturb: Any) -> tuple[dict[str, Any], str, float]:
    """Run a job, call ``disturb`` while the worker has an item of it; the job, that item, and the seconds until it ran again."""
    process = line.start("run", line.write("graph.json", slow(400)), "--items", str(ITEMS), "--out", "made", "--json")
    item = until(lambda: item_of(rig, worker))
    job_id, _, index = item.partition("-")
    until(lambda: [entry for entry in rig.executions(job_id) if entry[0] == int(index)])
    began = time.monotonic()
    disturb()
    until(lambda: len([entry for entry in rig.executions(job_id) if entry[0] == int(index)]) == 2)
    again_s = time.monotonic() - began
    done = line.finish(process)
    assert done.status == 0, done.err
    return done.json, item, again_s


def check_complete(line: CommandLine, rig: Rig, found: dict[str, Any], item: str) -> None:
    """Every item once in the result, the same pixels as undisturbed, and only the lost item executed twice."""
    files = [line.folder / path for path in found["files"]]
    assert [entry["index"] for entry in found["items"]] == list(range(ITEMS))
    assert [texts(path)["seed"] for path in files] == [100 + index for index in range(ITEMS)]
    for mine, theirs in zip(files, undisturbed(line), strict=True):
        assert numpy.array_equal(pixels(mine), theirs)
    lost = int(item.partition("-")[2])
    assert Counter(index for index, _, _ in rig.executions(found["job"])) == {index: 2 if index == lost else 1 for index in range(ITEMS)}


def test_a_killed_engine_costs_one_item_a_second_and_nothing_else(line: CommandLine, builtin_rig: Rig, victim: WorkerProcess) -> None:
    before = engine_of(victim)
    found, item, again_s = disturbed(line, builtin_rig, victim, before.kill)
    check_complete(line, builtin_rig, found, item)
    assert again_s < 4.0, "given back at once by its consumer; then it waits for a worker to be free"
    until(lambda: builtin_rig.state(victim.name))
    assert engine_of(victim).pid != before.pid, "the worker has another engine"
    assert victim.process.poll() is None
    builtin_rig.stop(victim.name)


def test_a_killed_worker_costs_one_lease_and_its_engine_ends_with_it(line: CommandLine, builtin_rig: Rig, victim: WorkerProcess) -> None:
    engine = engine_of(victim)
    found, item, again_s = disturbed(line, builtin_rig, victim, lambda: os.kill(victim.process.pid, signal.SIGKILL))
    check_complete(line, builtin_rig, found, item)
    assert again_s < LEASE_S + 5.0
    assert until(lambda: not engine.is_running() or engine.status() == psutil.STATUS_ZOMBIE, timeout_s=5)
    until(lambda: builtin_rig.state(victim.name) is None)
    victim.process.wait()
    builtin_rig.workers.pop(victim.name)


def test_a_stopped_worker_that_wakes_up_again_changes_nothing(line: CommandLine, builtin_rig: Rig, victim: WorkerProcess) -> None:
    """Its lease runs out while it is frozen, its item goes elsewhere, and then it goes on as if nothing had happened."""

    def freeze() -> None:
        os.kill(engine_of(victim).pid, signal.SIGSTOP)
        os.kill(victim.process.pid, signal.SIGSTOP)

    found, item, _ = disturbed(line, builtin_rig, victim, freeze)
    os.kill(victim.process.pid, signal.SIGCONT)
    os.kill(engine_of(victim).pid, signal.SIGCONT)
    check_complete(line, builtin_rig, found, item)
    until(lambda: builtin_rig.state(victim.name))
    state = builtin_rig.cluster.jobs.job_state(found["job"])
    assert (state.state, state.counts["done"]) == ("done", ITEMS)
    builtin_rig.stop(victim.name)
