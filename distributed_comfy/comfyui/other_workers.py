"""Whether somebody else can run what a node of this ComfyUI waits for; looked at now and then, and told at the node where nobody can."""
from __future__ import annotations

import logging
import time

import redis

from distributed_comfy.comfyui.master_job import MasterJob, RunningJob
from distributed_comfy.errors import DistributedComfyError
from distributed_comfy.planning.requirements import lacks

log = logging.getLogger(__name__)

_LOOK_S = 2.0
"""How often the live workers are looked at."""
_NOBODY = "no live worker can run it"


class OtherWorkers:
    """What was found at the last look; called by one node of a job at a time."""

    def __init__(self) -> None:
        self._found: dict[str, tuple[float, bool]] = {}
        """Job -> when the live workers were looked at, and whether one of them can run it."""
        self._alone = False
        """No worker could run the last job that was looked at."""

    def can_run(self, job: MasterJob, running: RunningJob) -> bool:
        """Whether a live worker can run the job's items; what was found last, where the table does not answer."""
        job_id, now = running.record.job_id, time.monotonic()
        looked_at, could = self._found.get(job_id, (float("-inf"), True))
        if now - looked_at < _LOOK_S:
            return could
        try:
            why = why_nobody(running)
        except (DistributedComfyError, redis.RedisError) as error:
            job.progress.note(f"waiting: {error}")
            self._found[job_id] = (time.monotonic(), could)
            return could
        job.progress.note(f"waiting: {why}; start one that can, or interrupt" if why and not job.can_run_here else "")
        if why and not self._alone:
            then = "this ComfyUI runs all of it until one can, and so with what follows" if job.can_run_here else "it waits for one"
            log.info("job %s: %s; %s", job_id, why, then)
        self._alone = bool(why)
        self._found[job_id] = (now, not why)
        return not why

    def forget(self, job_id: str) -> None:
        """The job is over."""
        self._found.pop(job_id, None)


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
