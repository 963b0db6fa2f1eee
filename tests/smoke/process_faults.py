"""Processes that are killed, frozen, or told to end while they have work."""
from __future__ import annotations

import signal
import time

import psutil

from tests.command_line import CommandLine, until
from tests.smoke.field import Ending, Field, kill, strike
from tests.smoke.measured import NOTHING, Costs
from tests.smoke.scenario import scenario


@scenario("engine killed", "kill -9 of an engine in the middle of an item", "engine death", short=True)
def engine_killed(field: Field) -> Ending:
    job = field.begin()
    hit = field.hit(job.queued())
    return field.ended(job, hit, strike(lambda: kill(hit.engine)))


@scenario(
    "consumer killed", "kill -9 of a worker's Celery consumer, whose engine ends with it", "lease", "engine ends with consumer", short=True
)
def consumer_killed(field: Field) -> Ending:
    job = field.begin()
    hit = field.hit(job.queued())
    struck_at = strike(lambda: kill(hit.worker.process))
    until(lambda: not hit.engine.is_running() or hit.engine.status() == "zombie", timeout_s=5)
    return field.ended(job, hit, struck_at)


@scenario("worker killed", "kill -9 of consumer and engine at once", "lease")
def worker_killed(field: Field) -> Ending:
    job = field.begin()
    hit = field.hit(job.queued())
    struck_at = strike(lambda: (kill(hit.worker.process), kill(hit.engine)))
    return field.ended(job, hit, struck_at)


@scenario("two of four workers killed", "kill -9 of two busy workers of four", "lease", costs=Costs(2, 2))
def two_killed(field: Field) -> Ending:
    job = field.begin()
    first = field.hit(job.queued())
    second = field.hit(job.report.job_id, but=[first.worker.name])
    struck_at = strike(lambda: [kill(hit.worker.process) for hit in (first, second)])
    return field.ended(job, second, struck_at)


@scenario("all workers killed", "kill -9 of all workers; one is started again", "lease", "parked work", costs=Costs(1, 4))
def all_killed(field: Field) -> Ending:
    job = field.begin()
    hit = field.hit(job.queued())
    struck_at = strike(lambda: [kill(worker.process) for worker in field.rig.workers.values()])
    until(lambda: not field.cluster.jobs.job_state(job.report.job_id).counts["running"])
    field.start(hit.worker.name)
    return field.ended(job, hit, struck_at)


@scenario("worker frozen", "SIGSTOP of a worker for longer than its lease, then SIGCONT", "lease", "late results are refused", short=True)
def worker_frozen(field: Field) -> Ending:
    """Its job goes on when it wakes up: an ended one would refuse its late words anyway."""
    items = field.items_for(field.timing.frozen_s)
    field.undisturbed(field.prompt(), items)  # first, for a field may count what began since its last job did
    job = field.begin(items=items)
    hit = field.hit(job.queued())
    struck_at = strike(hit.freeze)
    try:
        time.sleep(field.timing.frozen_s)
    finally:
        hit.go_on()
    field.refused(job, hit)
    ending = field.ended(job, hit, struck_at, timeout_s=150.0)
    ending.items = items
    return ending


def kill_a_master(field: Field, line: CommandLine) -> str:
    """Kill a run that has some of its items, whose job is parked before its workers have made them all; its job."""
    jobs = set(field.cluster.jobs.jobs())
    process = line.start(*field.run_command(), DC_OWNER_TTL_S="2")
    job_id = str(until(lambda: next(iter(set(field.cluster.jobs.jobs()) - jobs), "")))
    until(lambda: field.cluster.jobs.job_state(job_id).counts["done"] >= 2)
    process.kill()
    process.communicate()
    return job_id


def wait_until_parked(field: Field, job_id: str) -> None:
    """Until its owner's lease has run out, and its workers have finished what they had."""

    def is_parked() -> bool:
        state = field.cluster.jobs.job_state(job_id)
        assert not state.ended, state
        return state.state == "parked" and not state.counts["running"]

    until(is_parked)


def same_command(field: Field, line: CommandLine, job_id: str) -> Ending:
    """What a user does whose run was killed."""
    done = line.run(*field.run_command())
    assert done.status == 0, done.err
    assert f"goes on with job {job_id}" in done.err and done.json["job"] == job_id, done.err
    return Ending(line.folder / "made", [job_id])


@scenario(
    "master killed",
    "kill -9 of `distributed-comfy run`, and the same command again at once",
    "resume",
    "a job goes on itself",
    costs=NOTHING,
    short=True,
)
def master_killed(field: Field) -> Ending:
    line = field.command_line()
    return same_command(field, line, kill_a_master(field, line))


@scenario(
    "master killed, long ago",
    "kill -9 of `distributed-comfy run`; the same command when its workers have finished what they had, and its job is parked",
    "resume",
    "a job goes on itself",
    costs=NOTHING,
)
def master_killed_long_ago(field: Field) -> Ending:
    line = field.command_line()
    job_id = kill_a_master(field, line)
    wait_until_parked(field, job_id)
    return same_command(field, line, job_id)


@scenario(
    "detached collector killed",
    "kill -9 of what `run --detach` left in the background; `jobs attach` goes on",
    "a job without a collector is parked",
    costs=NOTHING,
)
def collector_killed(field: Field) -> Ending:
    line = field.command_line()
    began = line.run(*field.run_command(), "--detach")
    assert began.status == 0, began.err
    job_id, collector = began.json["job"], psutil.Process(began.json["pid"])
    until(lambda: field.cluster.jobs.job_state(job_id).counts["done"] >= field.timing.items // 3)
    kill(collector)
    done = line.run("jobs", "attach", job_id, "--out", "made", "--json")
    assert done.status == 0, done.err
    return Ending(line.folder / "made", [job_id])


@scenario("two masters", "two masters, each with half of the items; kill -9 of a worker that has one of the first one's", "lease")
def two_masters(field: Field) -> Ending:
    half, line = field.timing.items // 2, field.command_line()
    jobs = set(field.cluster.jobs.jobs())
    other = line.start(*field.run_command(half), "--user", "another")
    other_id = str(until(lambda: next(iter(set(field.cluster.jobs.jobs()) - jobs), "")))
    job = field.begin(items=half)
    hit = field.hit(job.queued())
    assert not field.cluster.jobs.job_state(other_id).ended
    struck_at = strike(lambda: (kill(hit.worker.process), kill(hit.engine)))
    ending = field.ended(job, hit, struck_at)
    done = line.finish(other)
    assert done.status == 0, done.err
    ending.items, ending.beside = half, [Ending(line.folder / "made", [other_id])]
    return ending


@scenario("rolling restart", "SIGTERM to one worker after the other while all have work, each started again", "drain", costs=NOTHING)
def rolling_restart(field: Field) -> Ending:
    job = field.begin()
    job.queued()
    struck_at = time.time()
    ended = []
    for name in list(field.rig.workers):
        hit = until(lambda name=name: field.hit_now(job.report.job_id, [name]) or field.cluster.jobs.job_state(job.report.job_id).ended)  # type: ignore[misc]
        if hit is True:
            break
        hit.worker.process.send_signal(signal.SIGTERM)
        assert hit.worker.process.wait(30) == 0, hit.worker.log()[-3000:]
        ended.append(name)
        field.restart_ended()
    assert len(ended) >= 2
    return field.ended(job, None, struck_at)
