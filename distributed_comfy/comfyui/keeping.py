"""Keeps the owner leases of all jobs of this process in one thread, which reaps while it is at it, and tells jobs whose cluster is away."""
from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass

import redis

from distributed_comfy.errors import DistributedComfyError
from tasks.cluster import Cluster
from tasks.reaper import reap_once

log = logging.getLogger(__name__)

AWAY_S = 30.0
"""How long a cluster may be away before its jobs are made without it; a server is started again in less."""


@dataclass
class _Kept:
    cluster: Cluster
    job_id: str
    owner: str
    on_away: Callable[[], None]
    renew_at: float = 0.0


class JobKeeper:
    """One per process; safe to use from several threads.  Its thread begins with the first job."""

    def __init__(self) -> None:
        self._kept: dict[str, _Kept] = {}
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._reaper_id = uuid.uuid4().hex
        self._away: dict[int, float] = {}
        """Clusters that did not answer, by identity -> since when."""

    def keep(self, cluster: Cluster, job_id: str, owner: str, on_away: Callable[[], None]) -> None:
        """From now on the job has an owner.

        Args:
            cluster: open connections.
            job_id: the job, whose owner lease is ``owner``'s already.
            owner: a name of this process for this job.
            on_away: called from the keeper's thread, again and again, where the cluster has not answered for `AWAY_S`; it must be quick.
        """
        with self._changed:
            self._kept[job_id] = _Kept(cluster, job_id, owner, on_away)
            self._changed.notify()
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="distributed-comfy owner", daemon=True)
                self._thread.start()

    def forget(self, job_id: str) -> _Kept | None:
        """Let the lease run out, where nobody is there to be told; what was kept."""
        with self._changed:
            return self._kept.pop(job_id, None)

    def leave(self, job_id: str) -> None:
        """Give the lease back, as far as the table answers."""
        kept = self.forget(job_id)
        if kept is None or id(kept.cluster) in self._away:
            return
        try:
            kept.cluster.jobs.disown(job_id, kept.owner)
        except (DistributedComfyError, redis.RedisError) as error:
            log.info("job %s: could not give the owner lease back (%s); it runs out by itself", job_id, error)

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._kept)
                clusters = {id(kept.cluster): kept.cluster for kept in self._kept.values()}
                self._away = {one: since for one, since in self._away.items() if one in clusters}
            for cluster in clusters.values():
                self._look_after(cluster)
            time.sleep(min(cluster.settings.reaper_interval_s for cluster in clusters.values()))

    def _look_after(self, cluster: Cluster) -> None:
        """Renew what is due, and reap."""
        began = time.monotonic()
        try:
            for kept in self._jobs_of(cluster):
                if kept.renew_at <= time.monotonic():
                    self._own(kept)
                    kept.renew_at = time.monotonic() + cluster.settings.owner_ttl_s / 4
            reap_once(cluster, self._reaper_id)
            self._away.pop(id(cluster), None)
        except (DistributedComfyError, redis.RedisError) as error:
            self._note_away(cluster, began, error)
        except Exception:  # the other jobs keep their owner
            log.exception("owner leases are not renewed; please report it")

    def _own(self, kept: _Kept) -> None:
        jobs = kept.cluster.jobs
        if not jobs.own(kept.job_id, kept.owner) and jobs.owner(kept.job_id):
            log.error("job %s was taken over by another process", kept.job_id)

    def _note_away(self, cluster: Cluster, began: float, error: Exception) -> None:
        jobs = self._jobs_of(cluster)
        if id(cluster) not in self._away:
            log.warning("owner leases of %d jobs are not renewed: %s", len(jobs), error)
        since = self._away.setdefault(id(cluster), began)
        if time.monotonic() - since >= AWAY_S:
            for kept in jobs:
                kept.on_away()

    def _jobs_of(self, cluster: Cluster) -> list[_Kept]:
        with self._changed:
            return [kept for kept in self._kept.values() if kept.cluster is cluster]
