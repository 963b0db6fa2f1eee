"""Holds a job's owner lease for as long as its submitter collects, and reaps while it is at it."""
from __future__ import annotations

import logging
import threading
import time
import uuid

import redis

from distributed_comfy.errors import DistributedComfyError
from tasks.cluster import Cluster
from tasks.reaper import reap_once

log = logging.getLogger(__name__)


class Ownership:
    """A context: while it lasts the job has an owner, and the table has a reaper even when no worker is alive."""

    def __init__(self, cluster: Cluster, job_id: str, owner: str) -> None:
        """
        Args:
            cluster: open connections.
            job_id: the job, whose owner lease is ``owner``'s already.
            owner: a name of this process for this job.
        """
        self.lost = threading.Event()
        """Set when somebody else has taken the job over, while this process was frozen or cut off."""
        self._cluster = cluster
        self._job_id = job_id
        self._owner = owner
        self._reaper_id = uuid.uuid4().hex
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep, name=f"owner-{job_id}", daemon=True)

    def __enter__(self) -> Ownership:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join(timeout=5)
        try:
            self._cluster.jobs.disown(self._job_id, self._owner)
        except (DistributedComfyError, redis.RedisError) as error:
            log.warning("job %s: could not give the owner lease back (%s); it runs out by itself", self._job_id, error)

    def _keep(self) -> None:
        settings = self._cluster.settings
        renew_at, ailing = 0.0, False
        while not self._ended.wait(settings.reaper_interval_s):
            try:
                if time.monotonic() >= renew_at:
                    if not self._cluster.jobs.own(self._job_id, self._owner) and self._cluster.jobs.owner(self._job_id):
                        log.error("job %s was taken over by another process; this one leaves it", self._job_id)
                        self.lost.set()
                        return
                    renew_at = time.monotonic() + settings.owner_ttl_s / 4
                reap_once(self._cluster, self._reaper_id)
                ailing = False
            except (DistributedComfyError, redis.RedisError) as error:
                log.log(logging.DEBUG if ailing else logging.WARNING, "job %s: owner lease not renewed (%s)", self._job_id, error)
                ailing = True
