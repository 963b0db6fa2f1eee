"""How long a job waits for an idle worker, and how many items that do nothing a cluster gets through."""
from __future__ import annotations

import random
import re
import time
from dataclasses import dataclass

from benchmarks.rig import Rig, item_prompt, open_rig, ran
from benchmarks.rows import Row, Section, median, percentile, spread
from distributed_comfy.messages import item_id

P50_MS, P99_MS = 5.0, 20.0
_STARTS = re.compile(r"^([\d.]+) tasks\.run_item item (\S+) starts", re.MULTILINE)

HOW = """\
Jobs of one item, one after the other, each to a worker that has been idle for 20 to 60 ms. The clock starts just before `submit_prompt`,
which reads the prompt, plans it, looks whether a live worker can run it, stores it and sends the ticket. *Stored* and *claimed* are the
times at which the scripts ran that put the job into the table and gave its item away, in the Redis server's clock, which is this host's,
to 0.5 ms. *Starts* is the moment at which the engine process enters the item's first node, told by the node itself: it includes reading
the job in the consumer, the pipe to the engine, placing inputs and checking the prompt. The other rows are parts of the same jobs. Items
per second: one job of many items that do nothing but return 8 x 8 pixels, from the first claim to the last completion; each goes through
claim, engine process, blob store and completion, with the append-only file on; runs on one and on four workers alternate."""


LIMITS = """\
Processor time in Python, step after step, with caches that went cold while nothing happened; no step waits for a clock or a poll. Of the
time before the job is stored, half is reading the prompt and planning, half four round trips to Redis (capabilities, workers, versions
for the resume key, the submission). Then Celery's publish takes about 0.9 ms and its way from the broker to the task's thread about 1.2
ms, of which 0.5 ms is the broker noting the unacknowledged ticket (without acknowledgement the p50 was 0.5 ms less); the claim takes 0.6
ms, reading the job 0.3 ms, the engine process 1 ms. An item that does nothing costs a worker about 5 ms in all: the same steps, and the
shipping and completing of the one before."""


@dataclass(frozen=True)
class _Times:
    """Of one job, in seconds since just before the submission."""

    stored: float
    """The job's record was created."""
    returned: float
    claimed: float
    ready: float
    """The consumer has all it needs to hand the item to the engine."""
    starts: float
    done: float


def run(*, quick: bool) -> Section:
    """See the module."""
    with open_rig(quick=quick) as rig:
        names = ["w0", "w1"] if quick else ["w0", "w1", "w2", "w3"]
        rig.start_workers(names)
        rig.use(names[:1])
        times = _dispatch_times(rig, 10 if quick else 400)
        rows = _dispatch_rows(times)
        rows += _throughput_rows(rig, names, items=20 if quick else 1000, repeats=1 if quick else 3)
    return Section("Dispatch", HOW, rows, LIMITS)


def _dispatch_times(rig: Rig, jobs: int) -> list[_Times]:
    chance = random.Random(1)
    found = []
    for number in range(jobs + 5):
        time.sleep(chance.uniform(0.02, 0.06))
        times = _one_job(rig)
        if number >= 5:  # the first ones open connections and import modules
            found.append(times)
    return _with_ready(rig, found)


def _one_job(rig: Rig) -> tuple[str, float, _Times]:
    began = time.time()
    job = rig.submit(item_prompt(), items=1)
    returned = time.time() - began
    rig.wait_end(job)
    when = {kind: at - began for at, kind, _ in rig.events(job)}
    created = rig.cluster.jobs.job_state(job.record.job_id).created_ms / 1000 + 0.0005 - began
    starts, _ = ran(rig.result(job))
    rig.forget(job)
    times = _Times(created, returned, when["claimed"], 0.0, starts - began, when["done"])
    return item_id(job.record.job_id, 0), began, times


def _with_ready(rig: Rig, found: list[tuple[str, float, _Times]]) -> list[_Times]:
    """Adds what only the worker's log knows."""
    log = {item: float(when) for when, item in _STARTS.findall(rig.workers["w0"].log_file.read_text())}
    return [_Times(**{**vars(times), "ready": log[item] - began}) for item, began, times in found]


def _dispatch_rows(times: list[_Times]) -> list[Row]:
    judged = [
        ("submit -> claimed by an idle worker", [one.claimed * 1000 for one in times]),
        ("submit -> item starts on an idle worker", [one.starts * 1000 for one in times]),
        ("stored -> item starts on an idle worker", [(one.starts - one.stored) * 1000 for one in times]),
    ]
    rows = []
    for words, values in judged:
        rows.append(Row(f"{words}, p50", median(values), "ms", P50_MS, spread(values)))
        rows.append(Row(f"{words}, p99", percentile(values, 0.99), "ms", P99_MS, f"p95 {percentile(values, 0.95):.1f}"))
    parts = [
        ("planned, checked, stored", [one.stored * 1000 for one in times]),
        ("stored -> claimed", [(one.claimed - one.stored) * 1000 for one in times]),
        ("claimed -> handed to the engine", [(one.ready - one.claimed) * 1000 for one in times]),
        ("handed to the engine -> starts", [(one.starts - one.ready) * 1000 for one in times]),
        ("starts -> done (nothing to do, 8 x 8 pixels shipped)", [(one.done - one.starts) * 1000 for one in times]),
    ]
    for words, values in parts:
        rows.append(Row(f"of which {words}, p50", median(values), "ms", note=f"p99 {percentile(values, 0.99):.1f}"))
    return rows


def _throughput_rows(rig: Rig, names: list[str], *, items: int, repeats: int) -> list[Row]:
    found: dict[int, list[float]] = {1: [], len(names): []}
    for _ in range(repeats):
        for count, rates in found.items():
            rig.use(names[:count])
            rates.append(_rate(rig, items * count))
    return [
        Row(f"items per second that do nothing, {count} worker{'s' * (count > 1)}", median(rates), "/s", note=spread(rates, 0))
        for count, rates in found.items()
    ]


def _rate(rig: Rig, items: int) -> float:
    job = rig.submit(item_prompt(), items=items)
    rig.wait_end(job)
    state = rig.cluster.jobs.job_state(job.record.job_id)
    first_claimed = state.created_ms
    rig.forget(job)
    return items / ((state.ended_ms - first_claimed) / 1000)
