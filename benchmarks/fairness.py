"""How evenly work is spread: workers of unequal speed, and a small job beside a large one."""
from __future__ import annotations

import heapq
import itertools
import time
from collections.abc import Mapping

from benchmarks.nodes import SLOWER
from benchmarks.rig import Rig, item_prompt, open_rig, ran
from benchmarks.rows import Row, Section, median, spread
from distributed_comfy.orchestrator.submit import QueuedJob

MAKESPAN, START_ITEMS = 1.05, 1.0
ITEMS = 38
PENDING = 1000

HOW = f"""\
*Uneven workers*: {ITEMS} equal items on four workers, one of which is {SLOWER} times slower; an item sleeps, so that the workers do not
disturb each other. The makespan runs from just before submission to the last completion. Its bound is what list scheduling gives (each
item to the worker that is free first) with each worker's measured item time, the median of what its engine took, and nothing lost between
items. *Two users*: one user has {PENDING} items pending on one worker, another submits a prompt of one image, at a moment within a
running item that moves evenly from trial to trial; counted is the time from just before submission to the item's first node. An item time
is what one of the first user's items takes on that worker, from one start to the next, measured while only they run."""


LIMITS = """\
Makespan: the milliseconds between two items of a worker (completion, ticket, claim) count against items of any length, so their share
falls with the item time. Two users: the next item of a busy worker is the small job's, so it waits for what is left of one item and then
for the few milliseconds of any dispatch."""


def run(*, quick: bool) -> Section:
    """See the module."""
    with open_rig(quick=quick) as rig:
        names = ["w0"] if quick else ["w0", "w1", "w2"]
        rows = _uneven(rig, names, seconds=0.1 if quick else 0.5, repeats=1 if quick else 3)
        rows += _two_users(rig, seconds=0.2 if quick else 0.5, trials=2 if quick else 20)
    return Section("Fairness", HOW, rows, LIMITS)


# -- uneven workers -----------------------------------------------------------------------------------------------------
def _uneven(rig: Rig, names: list[str], *, seconds: float, repeats: int) -> list[Row]:
    rig.start_workers(names)
    rig.start_workers(["slow"], provider="slow_node_classes")
    found = []
    for _ in range(repeats):
        rig.use(list(rig.workers))
        found.append(_makespan(rig, seconds))
    ratios = [makespan / bound for makespan, bound, _ in found]
    makespan, bound, by_slow = found[ratios.index(sorted(ratios)[len(ratios) // 2])]
    note = f"{makespan:.2f} s, bound {bound:.2f} s, {by_slow} items by the slow one; {spread(ratios, 3)}"
    name = f"makespan of {ITEMS} items of {seconds:g} s on uneven workers over the list-scheduling bound, median"
    return [Row(name, median(ratios), "", MAKESPAN, note)]


def _makespan(rig: Rig, seconds: float) -> tuple[float, float, int]:
    """(measured, bound, items that the slow worker did)."""
    began = time.time()
    job = rig.submit(item_prompt(seconds), items=ITEMS)
    rig.wait_end(job)
    makespan = max(at for at, kind, _ in rig.events(job) if kind == "done") - began
    times: dict[str, list[float]] = {name: [] for name in rig.workers}
    for index in range(ITEMS):
        result = rig.result(job, index)
        times[result.worker].append(result.seconds)
    rig.forget(job)
    by_slow = len(times["slow"])
    times = {name: taken or [seconds * (SLOWER if name == "slow" else 1)] for name, taken in times.items()}
    return makespan, list_schedule({name: median(taken) for name, taken in times.items()}, ITEMS), by_slow


def list_schedule(item_seconds: Mapping[str, float], items: int) -> float:
    """Makespan when each of ``items`` equal items goes to the worker that is free first (the faster one, of two).

    Args:
        item_seconds: worker -> seconds per item.
    """
    free = [(0.0, seconds) for seconds in item_seconds.values()]
    heapq.heapify(free)
    last = 0.0
    for _ in range(items):
        at, seconds = heapq.heappop(free)
        last = max(last, at + seconds)
        heapq.heappush(free, (at + seconds, seconds))
    return last


# -- two users ----------------------------------------------------------------------------------------------------------
def _two_users(rig: Rig, *, seconds: float, trials: int) -> list[Row]:
    rig.use(["w0"])
    large = rig.submit(item_prompt(seconds), items=PENDING, user="first")
    period = _period(rig, large)
    waits = [_wait_of_small_job(rig, large, period * (trial + 0.5) / trials) / period for trial in range(trials)]
    rig.forget(large)
    note = f"item time {period * 1000:.0f} ms; median {median(waits):.2f}, {spread(waits, 2)}"
    name = f"one-image prompt beside another user's {PENDING} pending items: start, worst of {trials}"
    return [Row(name, max(waits), "item times", START_ITEMS, note)]


def _period(rig: Rig, large: QueuedJob) -> float:
    """Seconds from one item's start to the next."""
    rig.wait_event(large, "done", index=3)
    began = [ran(rig.result(large, index))[0] for index in range(4)]
    return median([later - earlier for earlier, later in itertools.pairwise(began)])


def _wait_of_small_job(rig: Rig, large: QueuedJob, phase: float) -> float:
    """Seconds from submission, ``phase`` seconds into a running item, to the start."""
    begun = sum(kind == "claimed" for _, kind, _ in rig.events(large))
    claimed = rig.wait_event(large, "claimed", index=begun)
    time.sleep(max(0.0, claimed + phase - time.time()))
    began = time.time()
    small = rig.submit(item_prompt(), items=1, user="second")
    rig.wait_end(small)
    started, _ = ran(rig.result(small))
    rig.forget(small)
    return started - began
