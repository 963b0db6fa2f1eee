"""Processes that are killed, frozen, or told to end while they have work."""
from __future__ import annotations

import signal
import time

from tests.command_line import until
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
    job = field.begin()
    hit = field.hit(job.queued())
    struck_at = strike(hit.freeze)
    try:
        time.sleep(field.timing.frozen_s)
    finally:
        hit.go_on()
    until(lambda: field.rig.state(hit.worker.name), timeout_s=20)
    return field.ended(job, hit, struck_at)


@scenario("master killed", "kill -9 of `distributed-comfy run`, and the same command again", "resume", costs=Costs(0, 4))
def master_killed(field: Field) -> Ending:
    line = field.command_line()
    jobs = set(field.cluster.jobs.jobs())
    run = ("run", "graph.json", "--items", str(field.timing.items), "--out", "made", "--json")
    process = line.start(*run)
    first = str(until(lambda: next(iter(set(field.cluster.jobs.jobs()) - jobs), "")))
    field.wait_for_some(first)
    struck_at = strike(process.kill)
    process.communicate()
    done = line.run(*run)
    assert done.status == 0, done.err
    assert "goes on" in done.err, done.err
    return Ending(line.folder / "made", [first, done.json["job"]], struck_at=struck_at)


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
