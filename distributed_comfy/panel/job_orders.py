"""What a page tells jobs: one of them, those of this user or master, or all."""
from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import redis

from distributed_comfy.errors import DistributedComfyError, JobOwned, JobsNotEnded, JobStateInvalid, JobUnknown
from distributed_comfy.orchestrator.detach import attach_detached
from distributed_comfy.panel.bodies import BadRequest
from distributed_comfy.panel.place import Place
from distributed_comfy.panel.words import told
from distributed_comfy.settings import slug
from distributed_comfy.state.jobs import JobTable

ORDERS = ("cancel", "retry", "pause", "resume", "priority", "collect")
STARTING_ORDERS = ("retry", "collect")
"""Those that start a process; the others are done as soon as Redis has answered."""
log = logging.getLogger(__name__)

_LETS_GO_S = 20.0
"""What an owner may take until it has seen that its job had ended."""
_LOOK_S = 0.25
_REASON = "cancelled in the panel"
_LONGEST_REASON = 300
_PRIORITIES = range(10)


class JobOrders:
    """One panel's; waits for Redis.

    Args:
        place: what serves the panel.
    """

    def __init__(self, place: Place) -> None:
        self._place = place

    def order(self, job_id: str, order: str, *, priority: int | None = None, reason: str = "") -> str:
        """Steer a job; what then happens, in words.

        Raises:
            BadRequest: there is no such order, or no such priority.
            JobUnknown: there is no such job.
            JobStateInvalid: it has ended, or has not.
        """
        if order == "priority" and priority not in _PRIORITIES:
            raise BadRequest("priority must be a whole number from 0 (last) to 9 (first)")
        jobs = self._place.cluster().jobs
        deeds: dict[str, tuple[Callable[[], None], str]] = {
            "cancel": (lambda: self._cancel(jobs, job_id, reason), "is cancelled"),
            "retry": (lambda: self._retry(jobs, job_id), "goes on, and is collected on this host"),
            "collect": (lambda: self._collect(jobs, job_id), "is taken over, and its files are saved on this host"),
            "pause": (lambda: jobs.pause(job_id), "is paused; running items finish"),
            "resume": (lambda: jobs.resume(job_id), "goes on"),
            "priority": (lambda: jobs.set_priority(job_id, priority or 0), f"has priority {priority}"),
        }
        if order not in deeds:
            raise BadRequest(f"a job can be told {', '.join(ORDERS)}")
        deed, text = deeds[order]
        deed()
        return f"job {job_id} {text}"

    def interrupt(self, what: str, job_id: str) -> dict[str, Any]:
        """End one job, all of this master (of this user, where there is none), or all of the cluster; as ``Interrupted``.

        Raises:
            BadRequest: it says neither.
            JobUnknown, JobStateInvalid: as `order`, of one job.
            JobsNotEnded: prompts were ended, and the server of the jobs does not answer.
        """
        master = self._place.master
        if what == "job":
            if not job_id:
                raise BadRequest("job must name a job")
            prompts = master.interrupt(job_id) if master is not None else 0
            if not prompts:
                self.order(job_id, "cancel")
            return {"jobs": [job_id], "prompts": prompts, "refused": {}}
        if what not in ("mine", "all"):
            raise BadRequest("what must be job, mine or all")
        own = set(master.jobs()) if master is not None else set()
        prompts = master.interrupt(None) if master is not None else 0  # first: no server needs to answer for that
        try:
            return {"prompts": prompts, **self._end_jobs(own, every=what == "all")}
        except (DistributedComfyError, redis.RedisError) as error:
            if master is None:
                raise
            raise JobsNotEnded(prompts=prompts, reason=told(error)["message"]) from error

    def _end_jobs(self, own: Collection[str], *, every: bool) -> dict[str, Any]:
        """End those jobs, or all, and those of this user where there is no master; which were ended, and which refused.

        Args:
            own: of this master, whose prompts were ended: its jobs end by that, too.
            every: end those of others, too.
        """
        jobs = self._place.cluster().jobs
        live = {name: state for name, state in jobs.jobs().items() if not state.ended}
        if self._place.master is None:
            own = {name for name, state in live.items() if state.submitter == self._user}
        ended, refused = [], {}
        for name in live:
            if every or name in own:
                try:
                    self._cancel(jobs, name, "")
                    ended.append(name)
                except DistributedComfyError as error:
                    if name not in own and not isinstance(error, JobUnknown):  # its prompt was interrupted, and it ended by that
                        refused[name] = told(error)
        return {"jobs": ended, "refused": refused}

    @property
    def _user(self) -> str:
        return self._place.settings.submitter

    def _retry(self, jobs: JobTable, job_id: str) -> None:
        jobs.retry(job_id)
        if jobs.owner(job_id):  # probably of the life before, and about to let go: then nobody would collect it
            threading.Thread(target=self._collect_later, args=(jobs, job_id), name=f"collect-{job_id}", daemon=True).start()
        else:
            self._collect(jobs, job_id)

    def _collect_later(self, jobs: JobTable, job_id: str) -> None:
        """Collect it once its owner lets go; one that is still there after a while goes on with it."""
        give_up = time.monotonic() + _LETS_GO_S
        try:
            while jobs.owner(job_id):
                if time.monotonic() > give_up:
                    return
                time.sleep(_LOOK_S)
            self._collect(jobs, job_id)
        except (DistributedComfyError, redis.RedisError) as error:  # it has ended meanwhile, or somebody else collects it
            log.info("job %s is not collected here: %s", job_id, error)

    def _collect(self, jobs: JobTable, job_id: str) -> None:
        """Let a process of its own collect it, which goes on when this one ends: into the folder of before, where that is on this host."""
        state, spool, settings = jobs.job_state(job_id), jobs.spool(job_id), self._place.settings
        if state.ended:
            raise JobStateInvalid(job_id=job_id, state=state.state, order="collect", needed="a job that has not ended")
        if owner := jobs.owner(job_id):
            raise JobOwned(job_id=job_id, owner=owner)
        before = Path(spool.out) if spool and spool.host == settings.host_name and spool.out else None
        if before is None or before.is_relative_to(settings.cache_folder.absolute()):  # a ComfyUI collected it for its own prompt
            before = self._place.out / (slug(Path(state.title).stem) or "prompt")
        attach_detached(self._place.own, job_id, before)

    def _cancel(self, jobs: JobTable, job_id: str, reason: str) -> None:
        jobs.cancel(job_id, " ".join(reason.split())[:_LONGEST_REASON] or _REASON)
