"""Watches whether somebody can run what a queued job needs next: says so when nobody can, and gives up where that was agreed."""
from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import redis

from distributed_comfy.errors import ClusterUnavailable, DistributedComfyError, NoCapableWorker, NoWorker
from distributed_comfy.messages import Capability, JobRecord, Requirement
from distributed_comfy.orchestrator.progress import Waits
from distributed_comfy.orchestrator.submit import check_capable
from distributed_comfy.state.records import JobState
from tasks.cluster import Cluster

log = logging.getLogger(__name__)

LEFT_ALONE = "no worker is left that can run this job; it waits for one (start one, or Ctrl-C)"
_LOOK_S = 1.0


def nobody_can_run(record: JobRecord, state: JobState, live: Mapping[str, Capability]) -> ClusterUnavailable | None:
    """Why no live worker can run what the job needs next; None where one can, where something of it runs, and where it is not to run.

    Args:
        record: the job.
        state: of it, now.
        live: worker name -> its capability, of workers whose lease runs.
    """
    if not waits(state):
        return None
    need = needed_next(record, state)
    if not live:
        return NoWorker(remedy="start one")
    try:
        check_capable([need] if need else [], live)
    except NoCapableWorker as error:
        return error
    return None


def waits(state: JobState) -> bool:
    """Whether items of a job could run, and none does."""
    return state.state in ("pending", "running") and not state.counts["running"] and bool(state.counts["pending"])


def needed_next(record: JobRecord, state: JobState) -> Requirement | None:
    """What the next item of a job needs of a worker: the last one that is left is its last stage, where it has one."""
    return record.last_requirement if state.counts["pending"] == 1 and record.last_requirement else record.requirement


def why_it_waits(error: ClusterUnavailable) -> str:
    """The same in a few words, for a listing."""
    return f"no live worker can run it: {error.fields['lacks']}" if isinstance(error, NoCapableWorker) else "no worker is running"


class Wait:
    """What there is to say and do about a job for which there may be no worker.

    Args:
        give_up_at: monotonic time at which a job that nobody ever could run is given up; None: never.
    """

    def __init__(self, give_up_at: float | None) -> None:
        self._give_up_at = give_up_at
        self._was_served = False
        self._told = False

    def look(self, error: ClusterUnavailable | None, now: float) -> str:
        """What to tell, once per outage; empty for nothing.  ``error`` is from `nobody_can_run`."""
        if error is None:
            self._was_served, self._told = True, False
            return ""
        told, self._told = self._told, True
        if told:
            return ""
        if self._was_served or self._give_up_at is None:
            return LEFT_ALONE
        return f"{why_it_waits(error)}; it is queued and waits {max(0.0, self._give_up_at - now):.0f} s for one that can"

    def is_over(self, error: ClusterUnavailable | None, now: float) -> bool:
        """Whether to give the job up."""
        return error is not None and not self._was_served and self._give_up_at is not None and now >= self._give_up_at


class KeptResults:
    """Results that workers keep, because they cannot be stored now.

    Args:
        tell: called with a sentence for the user when there are some (again).
    """

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell = tell
        self._kept: set[int] = set()

    def hear(self, waits: Waits) -> None:
        """Of an item, from one thread."""
        had_some = bool(self._kept)
        if not waits.reason:
            self._kept.discard(waits.index)
            return
        self._kept.add(waits.index)
        if not had_some:
            self._tell(f"results wait on their workers, and nothing runs again for it: {waits.reason}")


class WorkerWatch:
    """What a job's watcher found; see `watching_workers`."""

    def __init__(self) -> None:
        self.gave_up: ClusterUnavailable | None = None
        """Why the job was given up; None where it was not."""


@contextmanager
def watching_workers(
    cluster: Cluster, record: JobRecord, tell: Callable[[str], None], give_up: Callable[[str], object], give_up_at: float | None = None
) -> Iterator[WorkerWatch]:
    """While the context lasts, look every second whether somebody can run the job.

    Args:
        cluster: open connections.
        record: the job; it is in the table.
        tell: called with a sentence for the user when nobody can run it (any more), from a thread of its own.
        give_up: called with the reason when it is given up; ends the job.
        give_up_at: see `Wait`.
    """
    over, watch, wait = threading.Event(), WorkerWatch(), Wait(give_up_at)

    def look() -> None:
        while not over.wait(_LOOK_S):
            try:
                error = nobody_can_run(record, cluster.jobs.job_state(record.job_id), cluster.matching.live())
            except (DistributedComfyError, redis.RedisError) as outage:  # whoever collects says so
                log.debug("job %s: %s", record.job_id, outage)
                continue
            now = time.monotonic()
            if wait.is_over(error, now):
                watch.gave_up = error
                give_up(str(error))
                return
            if sentence := wait.look(error, now):
                tell(sentence)

    thread = threading.Thread(target=look, name=f"workers-{record.job_id}", daemon=True)
    thread.start()
    try:
        yield watch
    finally:
        over.set()
        thread.join(timeout=5)
