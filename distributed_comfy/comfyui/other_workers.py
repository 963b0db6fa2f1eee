"""Whether somebody else can run what a node of this ComfyUI waits for; looked at now and then, and told at the node where nobody can."""
from __future__ import annotations

import logging
import time
from dataclasses import dataclass

import redis

from distributed_comfy.comfyui.master_job import MasterJob
from distributed_comfy.comfyui.running_job import RunningJob
from distributed_comfy.errors import DistributedComfyError
from distributed_comfy.planning.requirements import lacks

log = logging.getLogger(__name__)

_LOOK_S = 2.0
"""How often the live workers are looked at."""
STARTING_S = 90.0
"""How long a job waits for a worker that starts: as long as ComfyUI takes with many node packs on a slow disk."""
_NOBODY = "no live worker can run it"


@dataclass(frozen=True)
class _Look:
    at: float = float("-inf")
    why: str = ""
    """No live worker can run the job; empty where one can."""
    away: str = ""
    """Which server does not answer; then ``why`` is what was found before."""
    starting: str = ""
    """Workers that start, which the job waits for although ``why``; their names."""


class OtherWorkers:
    """What was found at the last look; called by one node of a job at a time."""

    def __init__(self) -> None:
        self._found: dict[str, _Look] = {}
        """Of each job."""
        self._told: set[str] = set()
        """Jobs that wait for a worker, which the log says."""
        self._awaiting: set[str] = set()
        """Jobs that wait for one that starts, which the log says."""
        self._alone = ""
        """Why no worker could run the last job that was looked at, so that this ComfyUI does; empty where one could."""
        self._starting: dict[str, float] = {}
        """Workers that start -> since when that is known."""

    def can_run(self, job: MasterJob, running: RunningJob, here: str, stuck: bool) -> bool:
        """Whether a live worker can run the job's items, or one that starts may soon; what was found last, where a server does not answer.

        Args:
            job: that a node waits for.
            running: it, as it is collected.
            here: what this ComfyUI lacks for items that are left; empty where it can run all of them.
            stuck: it cannot run any of those that are left.
        """
        look = self._look(job, running)
        waits = f"waiting: {look.why}, and {here}; start one that can, or interrupt" if look.why and here and stuck else ""
        starts = f"waiting for {look.starting} to start" if look.starting else ""
        job.progress.note(f"waiting: {look.away}" if look.away else starts or waits)
        self._log(running.record.job_id, look, here)
        return not look.why or bool(look.starting)

    def _look(self, job: MasterJob, running: RunningJob) -> _Look:
        job_id, now = running.record.job_id, time.monotonic()
        last = self._found.get(job_id, _Look())
        if now - last.at < _LOOK_S:
            return last
        why, away, starting, blobs = last.why, "", last.starting, running.cluster.blobs
        try:
            why = why_nobody(running)
            starting = self._awaited(job, running) if why else ""
            blobs.exists([blobs.blob_id(f"{job_id}:look", 1)])  # whether that server answers: workers' results come by way of it
        except (DistributedComfyError, redis.RedisError) as error:
            now, away = time.monotonic(), str(error)
        self._found[job_id] = look = _Look(now, why, away, starting)
        return look

    def _awaited(self, job: MasterJob, running: RunningJob) -> str:
        """Names of the workers that start, but for those that have taken too long."""
        now, names = time.monotonic(), job.workers_starting(running.cluster)
        self._starting = {name: self._starting.get(name, now) for name in names}
        return ", ".join(sorted(name for name, since in self._starting.items() if now - since < STARTING_S))

    def _log(self, job_id: str, look: _Look, here: str) -> None:
        """Once per job that waits; where this ComfyUI runs all of it, once for each reason until a worker can."""
        why = look.why
        if look.starting:
            if job_id not in self._awaiting:
                self._awaiting.add(job_id)
                log.info("job %s: no live worker can run it yet; %s has up to %.0f s to start", job_id, look.starting, STARTING_S)
            return
        if why and here and job_id not in self._told:
            self._told.add(job_id)
            log.info("job %s: %s, and %s; it waits for one", job_id, why, here)
        if why and not here and why != self._alone:
            log.info("job %s: %s; this ComfyUI runs all of it until one can, and so with what follows", job_id, why)
        self._alone = why if why and not here else self._alone if why else ""

    def forget(self, job_id: str) -> None:
        """The job is over."""
        self._found.pop(job_id, None)
        self._told.discard(job_id)
        self._awaiting.discard(job_id)


def why_nobody(running: RunningJob) -> str:
    """What each live worker lacks; empty where one of them can run the job's items.

    Raises:
        ClusterUnavailable, redis.RedisError: the table does not answer.
    """
    live, need = running.cluster.matching.live(), running.record.requirement
    barred = running.cluster.workers.barred(running.record.job_id)
    missing = {name: lacks(need, one) if need is not None else [] for name, one in live.items()}
    if any(not what for name, what in missing.items() if name not in barred):
        return ""
    words = [f"{name} lacks {', '.join(what)}" if what else f"{name} could not" for name, what in sorted(missing.items())]
    return f"{_NOBODY} ({'; '.join(words)})" if words else _NOBODY
