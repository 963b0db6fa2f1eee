"""What an item does to its engine: it hangs, takes all memory, breaks off in native code, once or each time."""
from __future__ import annotations

import time

from tests.smoke.field import LONG, SEED, Ending, Field
from tests.smoke.measured import TARGET_S, Costs
from tests.smoke.scenario import scenario

INDEX = 3


def with_mishap(field: Field, order: str) -> Ending:
    """A job in which one item does that; it takes the order away just before."""
    path = field.mishaps / str(SEED + INDEX)
    path.write_text(order)
    job = field.begin()
    job.queued()
    job.until(lambda: not path.exists())
    ending = field.ended(job, None, field.mishaps.stat().st_mtime)  # when it was taken away
    ending.index = INDEX
    return ending


@scenario("engine hangs", "a node makes no step any more", "stall limit", costs=Costs(1, 1, again_s=LONG.stall_s + TARGET_S))
def engine_hangs(field: Field) -> Ending:
    return with_mishap(field, "hang")


@scenario("out of memory", "a node raises torch's own class", "memory is freed, then elsewhere", short=True)
def out_of_memory(field: Field) -> Ending:
    return with_mishap(field, "memory")


@scenario("segfault", "a node breaks off in native code", "engine death")
def segfault(field: Field) -> Ending:
    return with_mishap(field, "segfault")


@scenario(
    "poison item",
    "an item breaks off in native code on every engine; the job may go on without it",
    "attempts end",
    costs=Costs(2, 2),
    short=True,
)
def poison(field: Field) -> Ending:
    (field.mishaps / str(SEED + INDEX)).write_text("segfault stays")
    job = field.begin(on_missing="drop")
    job.queued()
    struck_at = time.time()
    report = job.wait()
    assert list(report.done.missing) == [INDEX] and "SIGSEGV" in str(report.done.missing[INDEX]), report.done.missing
    return Ending(report.out, [report.job_id], report.arrived, struck_at, reported=(INDEX,))


@scenario(
    "failed job retried",
    "an item breaks off in native code three times, so that its job fails; then it is well, and `jobs retry` and `jobs attach` complete it",
    "attempts end",
    "a failed job is retried",
    costs=Costs(3, 6),  # those that others ran when the job failed were stopped
)
def failed_and_retried(field: Field) -> Ending:
    line, order = field.command_line(), field.mishaps / str(SEED + INDEX)
    order.write_text("segfault stays")
    failed = line.run(*field.run_command())
    assert failed.status == 1 and "SIGSEGV" in failed.err, failed.err
    job_id, kept = failed.json["job"], {item["index"] for item in failed.json["items"]}
    order.unlink()
    before = len(field.rig.executions(job_id))
    assert line.run("jobs", "retry", job_id).status == 0
    done = line.run("jobs", "attach", job_id, "--out", "made", "--json")
    assert done.status == 0, done.err
    again = {index for index, *_ in field.rig.executions(job_id)[before:]}
    assert kept and again == set(range(field.timing.items)) - kept, "what was finished does not run again"
    return Ending(line.folder / "made", [job_id])


@scenario(
    "one device too small",
    "every item that one of the workers takes runs out of memory there",
    "memory is freed, then elsewhere",
    costs=Costs(1, 4),
)
def small_device(field: Field) -> Ending:
    """Twice at most: once more after the memory was freed, then the worker leaves this job to the others."""
    with field.another("small", environment={"RULE_MISHAP": "memory"}):
        job = field.begin()
        field.cluster.jobs.job_state(job.queued())
        return field.ended(job, None, time.time())
