"""How soon an item is claimable again when its worker, or its worker's engine, is killed."""
from __future__ import annotations

import os
import random
import signal
import time

from benchmarks.rig import BenchmarkFailed, Rig, item_prompt, open_rig
from benchmarks.rows import Row, Section, median, percentile, spread
from distributed_comfy.orchestrator.submit import QueuedJob
from tasks.reaper import reap_once

WORKER_S, ENGINE_S = 8.0, 1.0
LONG_S = 600.0

HOW = """\
*Worker*: each of several workers has an item that takes ten minutes; one after the other gets SIGKILL (the Celery consumer) at random
moments, so that leases and reaper stand anywhere. Counted is the time until the table says that the item can be claimed (the `released`
event, in Redis' clock). The other workers and this process reap, as in any cluster. *Engine*: the engine process of a worker gets SIGKILL
in the middle of an item; the consumer notices, and gives the item back. A killed consumer takes its engine with it: *engines left* are
those that still ran at the end."""


LIMITS = """\
A killed worker is found by its lease alone: between 4.5 and 6 s are left of it, then comes the reaper's next tick, once per second. A
dead engine is noticed by the end of its pipe."""


def run(*, quick: bool) -> Section:
    """See the module."""
    with open_rig(quick=quick) as rig:
        rows = _killed_engines(rig, ["w0"] if quick else ["w0", "w1"], trials=1 if quick else 12)
    with open_rig(quick=quick) as rig:
        rows = _killed_workers(rig, trials=1 if quick else 12) + rows
    return Section("Losses", HOW, rows, LIMITS)


def _killed_workers(rig: Rig, trials: int) -> list[Row]:
    names = [f"w{number}" for number in range(trials)]
    for some in (names[start : start + 4] for start in range(0, trials, 4)):  # all at once would only wait for each other
        rig.start_workers(some)
    job = rig.submit(item_prompt(LONG_S), items=trials)
    for index in range(trials):
        rig.wait_event(job, "claimed", index)
    engines = _engines(rig, job)
    killed = _kill_in_turn(rig, job)
    waits = [rig.wait_event(job, "released", index) - at for index, at in killed.items()]
    left = sum(_is_alive(pid) for pid in engines)
    rig.forget(job)
    settings = rig.cluster.settings
    note = f"median {median(waits):.1f}, {spread(waits)}; lease {settings.lease_ttl_s:g} s, engines left: {left}"
    return [Row("kill -9 of a worker -> its item claimable, p95", percentile(waits, 0.95), "s", WORKER_S, note)]


def _kill_in_turn(rig: Rig, job: QueuedJob) -> dict[int, float]:
    """Item -> when its worker was killed; reaps meanwhile, as every process of a cluster does."""
    chance = random.Random(2)
    holders = {int(claim.rpartition("-")[2]): worker.facts.name for worker in rig.cluster.workers.workers() for claim in worker.claims}
    killed = {}
    for index, name in sorted(holders.items()):
        time.sleep(chance.uniform(0.1, 0.9))
        killed[index] = rig.workers[name].kill()
        reap_once(rig.cluster, "benchmark")
    give_up = time.monotonic() + 2 * WORKER_S + rig.cluster.settings.lease_ttl_s
    while sum(kind == "released" for _, kind, _ in rig.events(job)) < len(killed) and time.monotonic() < give_up:
        reap_once(rig.cluster, "benchmark")
        time.sleep(rig.cluster.settings.reaper_interval_s / 4)
    return killed


def _engines(rig: Rig, job: QueuedJob) -> list[int]:
    """Process ids of the engines that run a job's items, once all have begun."""
    give_up = time.monotonic() + 20
    while time.monotonic() < give_up:
        lines = rig.execution_log.read_text().splitlines() if rig.execution_log.exists() else []
        found = [int(line.split()[3]) for line in lines if line.startswith(f"{job.record.job_id} ")]
        if len(found) >= job.record.items:
            return found
        time.sleep(0.02)
    raise BenchmarkFailed(f"{job.record.items} items were claimed, {len(found)} began")


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _killed_engines(rig: Rig, names: list[str], trials: int) -> list[Row]:
    rig.start_workers(names)
    waits = []
    for trial in range(trials):
        rig.use([names[trial % len(names)]])
        job = rig.submit(item_prompt(LONG_S), items=1)
        rig.wait_event(job, "claimed")
        (engine,) = _engines(rig, job)
        time.sleep(0.2)
        killed = time.time()
        os.kill(engine, signal.SIGKILL)
        waits.append(rig.wait_event(job, "released") - killed)
        rig.forget(job)
    return [Row("death of an engine -> its item claimable, p95", percentile(waits, 0.95), "s", ENGINE_S, f"{spread(waits, 3)}")]
