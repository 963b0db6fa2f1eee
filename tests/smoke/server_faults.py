"""Redis servers that are killed, come back with less than they had, have no room, or lose everything."""
from __future__ import annotations

import shutil
import time

import redis

from distributed_comfy.errors import JobLost
from tests.command_line import until
from tests.smoke.field import Ending, Field, strike
from tests.smoke.measured import NOTHING, Costs
from tests.smoke.process_faults import kill_a_master, wait_until_parked
from tests.smoke.scenario import scenario

AWAY_S = 1.0
ROOM_BYTES = 32 * 2**20


@scenario(
    "blob Redis killed",
    "kill -9 of the server of blobs; it starts again, empty, a second later",
    "blobs are made again",
    costs=Costs(0, 5),
    short=True,
)
def blobs_killed(field: Field) -> Ending:
    """What was stored and not fetched yet runs again: at most one item per worker and one being fetched."""
    job = field.begin()
    job.queued()
    while not field.blobs.keys():  # a result lies there for some milliseconds
        pass
    struck_at = strike(field.blobs.kill)
    time.sleep(AWAY_S)
    field.blobs.start()
    return field.ended(job, None, struck_at)


@scenario(
    "state Redis killed",
    "kill -9 of the server of the table; it starts again from its append-only file a second later",
    "append-only file",
    "one lease after a restart",
    "engines go on",
    costs=Costs(0, 4),  # while the disk is still syncing the last second, the server keeps what it writes to itself
    short=True,
)
def state_killed(field: Field) -> Ending:
    """With a file that is synced every second, but a machine that did not crash, nothing is lost."""
    job = field.begin()
    field.hit(job.queued())
    struck_at = strike(field.state.kill)
    time.sleep(AWAY_S)
    field.state.start()
    return field.ended(job, None, struck_at)


@scenario(
    "state Redis two seconds back",
    "kill -9 of the server of the table; it starts from a copy of its file that is 2 s old",
    "append-only file",
    "the spool counts",
    "renewals compare claims",
    costs=Costs(0, 12),
    short=True,
)
def state_two_seconds_old(field: Field) -> Ending:
    """What workers finished in these 2 s and the collector had fetched is not run again; what they began is."""
    job = field.begin()
    until(lambda: field.cluster.jobs.job_state(job.queued()).counts["done"] >= 2)
    old = field.state.folder.parent / "old"
    shutil.rmtree(old, ignore_errors=True)
    shutil.copytree(field.state.folder / "appendonlydir", old)
    time.sleep(field.timing.old_s)
    struck_at = strike(field.state.kill)
    shutil.rmtree(field.state.folder / "appendonlydir")
    shutil.copytree(old, field.state.folder / "appendonlydir")
    field.state.start()
    return field.ended(job, None, struck_at)


@scenario(
    "state Redis wiped",
    "the server of the table starts again without its file; the same command again",
    "a lost table is told",
    "resume",
    costs=Costs(0, 5),
    short=True,
)
def state_wiped(field: Field) -> Ending:
    """The run ends with a sentence, and the same command goes on from the folder that it had."""
    line = field.command_line()
    jobs = set(field.cluster.jobs.jobs())
    run = field.run_command()
    process = line.start(*run)
    first = str(until(lambda: next(iter(set(field.cluster.jobs.jobs()) - jobs), "")))
    field.wait_for_some(first)
    struck_at = strike(field.state.kill)
    shutil.rmtree(field.state.folder / "appendonlydir")
    field.state.start()
    lost = line.finish(process)
    assert lost.status == 1 and f"error: {JobLost(job_id=first)}\n" in lost.err, (lost.status, lost.err)
    assert "the same command goes on with them" in lost.err and first not in lost.err.partition("the same command")[2], lost.err
    until(lambda: all(field.rig.state(name) for name in field.rig.workers))
    done = line.run(*run)
    assert done.status == 0, done.err
    return Ending(line.folder / "made", [first, done.json["job"]], struck_at=struck_at)


@scenario(
    "state Redis restarts without a master",
    "kill -9 of `distributed-comfy run`; when its job is parked, of the server of the table, which starts again; then `jobs attach`",
    "append-only file",
    "engines go on",
    "a job without a collector is parked",
    costs=Costs(0, 4),  # as without the master's death
)
def state_killed_without_master(field: Field) -> Ending:
    """What its workers have is entered when the server is back; no more is handed out, and what was parked is shown as that."""
    line = field.command_line()
    job_id = kill_a_master(field, line)
    until(lambda: field.cluster.jobs.job_state(job_id).state == "parked")
    field.state.kill()
    time.sleep(AWAY_S)
    field.state.start()
    wait_until_parked(field, job_id)
    shown = next(row for row in line.run("jobs", "list", "--json").json if row["job"] == job_id)
    assert shown["state"] == "parked" and "its owner is gone" in shown["reason"] and shown["counts"]["pending"], shown
    executions = len(field.rig.executions(job_id))
    time.sleep(field.timing.lease_s)
    assert len(field.rig.executions(job_id)) == executions, "nothing of a parked job begins"
    done = line.run("jobs", "attach", job_id, "--out", "made", "--json")
    assert done.status == 0, done.err
    return Ending(line.folder / "made", [job_id])


@scenario(
    "blob Redis full",
    "the server of blobs has no room for longer than a lease",
    "a full blob server is waited for",
    costs=NOTHING,
    short=True,
)
def blobs_full(field: Field) -> Ending:
    """Others have all that it may hold."""
    line = field.command_line()
    with redis.Redis.from_url(field.blobs.url) as client:
        client.set("others", bytes(ROOM_BYTES))
        job = field.begin()
        field.hit(job.queued())
        struck_at = strike(lambda: client.config_set("maxmemory", ROOM_BYTES))
        try:
            job.until(lambda: job.report.waited)
            time.sleep(1.5 * field.timing.lease_s)
            words = [line.run(*command).out for command in (("jobs", "show", job.report.job_id), ("workers", "list"))]
        finally:
            client.config_set("maxmemory", 0)
            client.delete("others")
    assert all("keeps the result of item" in text and " is full" in text for text in words), words
    (told,) = job.report.waited
    assert " is full" in told, told
    ending = field.ended(job, None, struck_at)
    assert not any(item.attempts for item in field.cluster.jobs.item_states(job.report.job_id).values())
    return ending


@scenario(
    "state Redis full",
    "the server of the table refuses all that needs memory for longer than a lease",
    "leases at maxmemory",
    "engines go on",
    costs=NOTHING,
)
def state_full(field: Field) -> Ending:
    job = field.begin()
    field.hit(job.queued())
    with redis.Redis.from_url(field.state.url) as client:
        struck_at = strike(lambda: client.config_set("maxmemory", "1"))
        try:
            time.sleep(1.5 * field.timing.lease_s)
        finally:
            client.config_set("maxmemory", "0")
    return field.ended(job, None, struck_at)
