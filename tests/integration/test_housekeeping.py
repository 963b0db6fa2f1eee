"""What a job leaves behind when it is over: its files in the user's folder, and nothing else anywhere; a thousand of them leave no more.

Keys of the table are kept for DC_JOB_TTL_S, for `jobs show` and `jobs retry`; here that time is over when a test says so.  ``make flat``
runs the last test with a thousand jobs.
"""
from __future__ import annotations

import logging
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from distributed_comfy.collector.spool import SPOOL_FOLDER
from distributed_comfy.errors import JobCancelled, JobFailed
from distributed_comfy.messages import Prompt
from tasks.reaper import reap_once
from tests.cluster_fixtures import open_rig
from tests.cluster_rig import Rig, left_in_memory
from tests.command_line import pictures, slow, until
from tests.prompts import node, out

pytestmark = [pytest.mark.redis, pytest.mark.timeout(240)]

log = logging.getLogger(__name__)

PREFIX = "house:"
JOBS = int(os.environ.get("FLAT_JOBS", "40"))
LOGS = {".log", ".1"}
PER_CLUSTER = {f"{PREFIX}{name}" for name in ("reaper-facts", "tallies", "limits", "sequence", "served", "inflight")}
"""One of each, however many jobs there are."""
MIB = 2**20


@pytest.fixture
def rig(cluster_servers: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[Rig]:
    """Two workers that have run something; temporary files of all processes go into one folder.  A parameter is DC_SHARED_MEMORY."""
    monkeypatch.setenv("DC_SHARED_MEMORY", getattr(request, "param", "0"))
    temporary = tmp_path / "rig" / "tmp"
    temporary.mkdir(parents=True)
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    monkeypatch.setenv("TMPDIR", str(temporary))
    with open_rig("builtin", cluster_servers, tmp_path / "rig", prefix=PREFIX) as rig:
        rig.run(everything(), items=3)
        yield rig


def everything() -> Prompt:
    """Pictures collected and then saved by a last stage, files of a node in each item, what is fed and what comes home."""
    prompt = pictures()
    prompt["save"] = node("SaveImage", images=out("collect"), filename_prefix="sub/whole")
    prompt["file"] = node("RuleRecord", images=out("make"), label="item")
    return prompt


def failing() -> Prompt:
    """Item 0 is done when item 1 fails."""
    prompt = slow(300)
    prompt["fail"] = node("RuleFail", images=out("make"), seed=out("seed"), bad_seed=101)
    prompt["wait"]["inputs"]["images"] = out("fail")
    return prompt


def left(rig: Rig) -> dict[str, set[str]]:
    """All keys of both servers, and all files but logs and what was delivered into the folders of jobs."""
    state, blobs = (
        {key.decode() if isinstance(key, bytes) else str(key) for key in client.scan_iter(f"*{PREFIX}*", count=1000)}
        for client in (rig.cluster.client, rig.cluster.blob_client)
    )
    lively = ("worker:", "status:", "reaper", "celery:", "_kombu", "hosts", "host:")
    state = {key for key in state if not key.removeprefix(PREFIX).startswith(lively)} - PER_CLUSTER
    files = {str(path.relative_to(rig.folder)) for path in rig.folder.rglob("*") if path.suffix not in LOGS}
    delivered = {path for path in files if path.startswith("out") and SPOOL_FOLDER not in path}
    return {"state": state, "blobs": blobs, "files": files - delivered}


def let_a_day_pass(rig: Rig) -> None:
    """What expires by itself, and not later than ended jobs are shown, has expired."""
    client: Any = rig.cluster.client
    for key in [*client.scan_iter(f"{PREFIX}job:*", count=1000), *client.scan_iter(f"*{PREFIX}celery-task-meta-*", count=1000)]:
        if client.ttl(key) > 0:
            assert client.ttl(key) <= rig.cluster.settings.job_ttl_s, key
            client.delete(key)
    for job_id in client.zrange(f"{PREFIX}ended", 0, -1):
        client.zadd(f"{PREFIX}ended", {job_id: 0})
    reap_once(rig.cluster, "test")


def settles(rig: Rig, before: dict[str, set[str]]) -> None:
    """Some ticks after the time that ended jobs are shown, nothing is there that was not there before."""
    deadline = time.monotonic() + 30
    let_a_day_pass(rig)
    while any((added := {name: found - before[name] for name, found in left(rig).items()}).values()):
        assert time.monotonic() < deadline, f"left: {added}"
        time.sleep(0.3)
        let_a_day_pass(rig)


def quiet(rig: Rig) -> dict[str, set[str]]:
    """What there is when nothing was asked for a while."""
    rig.wait_idle()
    until(lambda: let_a_day_pass(rig) or not rig.cluster.client.exists(f"{PREFIX}jobs"))
    found = left(rig)
    assert not [path for path in found["files"] if SPOOL_FOLDER in path] and not found["blobs"], found
    return found


def test_a_finished_job_leaves_its_files_alone(rig: Rig) -> None:
    before = quiet(rig)
    report = rig.run(everything(), items=4)
    assert len(report.done.files) >= 5
    assert not (report.out / SPOOL_FOLDER).exists()
    settles(rig, before)


def test_a_job_that_fails_leaves_what_another_try_may_use_and_nothing_else(rig: Rig) -> None:
    before = quiet(rig)
    report = rig.run(failing(), items=2)
    assert isinstance(report.error, JobFailed)
    spool = report.out / SPOOL_FOLDER
    settles(rig, {**before, "files": before["files"] | files_of(rig, spool)})
    assert bool(list(spool.glob("*/ended"))) == bool(report.arrived), "marked, so that a later run may take it away"


@pytest.mark.parametrize("moment", ["pending", "running", "between"])
def test_a_cancelled_job_of_which_nothing_is_finished_leaves_nothing(rig: Rig, moment: str) -> None:
    before = quiet(rig)
    job = rig.begin(slow(400), items=8)
    job_id = job.queued()
    if moment == "running":
        job.until(lambda: rig.executions(job_id))
    elif moment == "between":
        time.sleep(0.05)
    job.stop.set()
    report = job.wait()
    assert isinstance(report.error, JobCancelled)
    finished = files_of(rig, report.out / SPOOL_FOLDER)
    assert bool(finished) == bool(report.arrived), "only what another try may use stays"
    settles(rig, {**before, "files": before["files"] | finished})


@pytest.mark.skipif(sys.platform != "linux", reason="shared memory is used on Linux")
@pytest.mark.parametrize("rig", ["1"], ids=["memory"], indirect=True)
def test_no_end_of_a_job_leaves_anything_in_this_hosts_memory(rig: Rig) -> None:
    before = quiet(rig)
    done = rig.run(everything(), items=4)
    assert done.done.error is None
    failed = rig.run(failing(), items=2)
    assert isinstance(failed.error, JobFailed)
    job = rig.begin(slow(400), items=8)
    job.until(lambda: left_in_memory(job.queued()) - {"lock"})
    job.stop.set()
    cancelled = job.wait()
    assert isinstance(cancelled.error, JobCancelled)
    kept = [path for report in (failed, cancelled) for path in files_of(rig, report.out / SPOOL_FOLDER)]
    settles(rig, {**before, "files": before["files"].union(kept)})
    assert not left_in_memory(done.job_id)
    for report in (failed, cancelled):
        assert left_in_memory(report.job_id) <= {"lock"}, "the empty folder goes two minutes later, with the next engine that looks"


def files_of(rig: Rig, folder: Path) -> set[str]:
    return {str(path.relative_to(rig.folder)) for path in [folder, *folder.rglob("*")] if path.exists()}


def memory(rig: Rig) -> dict[str, int]:
    """Of both servers, of each process of the workers and of this one, in bytes."""
    servers = {"state": rig.cluster.client, "blobs": rig.cluster.blob_client}
    found = {name: int(client.info("memory")["used_memory"]) for name, client in servers.items()}
    found["this process"] = psutil.Process().memory_info().rss
    for worker in rig.workers.values():
        consumer = psutil.Process(worker.process.pid)
        found[worker.name] = consumer.memory_info().rss
        found[f"{worker.name}'s engine"] = sum(child.memory_info().rss for child in consumer.children(recursive=True))
    return found


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_memory_is_flat_over_many_jobs(rig: Rig) -> None:
    """After a tenth of the jobs everything has been loaded and every buffer has its size."""
    before = quiet(rig)
    after_a_tenth: dict[str, int] = {}
    for number in range(JOBS):
        report = rig.run(everything(), items=2)
        assert len(report.done.results) == 3
        for path in sorted(report.out.rglob("*"), reverse=True):
            path.unlink() if path.is_file() else path.rmdir()
        let_a_day_pass(rig)
        if number == JOBS // 10:
            settles(rig, before)
            after_a_tenth = memory(rig)
    settles(rig, before)
    growth = {name: size - after_a_tenth[name] for name, size in memory(rig).items()}
    log.info("%d jobs: %s", JOBS, ", ".join(f"{name} {size / MIB:+.1f} MiB" for name, size in growth.items()))
    assert growth["state"] < 2 * MIB and growth["blobs"] < 2 * MIB, growth
    assert all(size < 24 * MIB for name, size in growth.items()), growth
