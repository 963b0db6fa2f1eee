"""Holds a job's owner lease for as long as its submitter collects, and reaps while it is at it."""
from __future__ import annotations

import logging
import threading
import time
import uuid

import redis

from distributed_comfy.errors import ClusterUnavailable
from tasks.cluster import Cluster
from tasks.reaper import reap_once

log = logging.getLogger(__name__)


class Ownership:
    """A context: while it lasts the job has an owner, and the table has a reaper even when no worker is alive."""

    def __init__(self, cluster: Cluster, job_id: str, owner: str) -> None:
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
        except (ClusterUnavailable, redis.RedisError) as error:
            log.warning("job %s: could not give the owner lease back (%s); it runs out by itself", self._job_id, error)

    def _keep(self) -> None:
        settings = self._cluster.settings
        renew_at = 0.0
        while not self._ended.wait(settings.reaper_interval_s):
            try:
                if time.monotonic() >= renew_at:
                    self._cluster.jobs.own(self._job_id, self._owner)
                    renew_at = time.monotonic() + settings.owner_ttl_s / 4
                reap_once(self._cluster, self._reaper_id)
            except (ClusterUnavailable, redis.RedisError) as error:
                log.debug("job %s: owner lease not renewed: %s", self._job_id, error)
