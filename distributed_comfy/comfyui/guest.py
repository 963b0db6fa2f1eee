"""This ComfyUI as a guest in the table of truth: it takes items of its own jobs, one at a time, and is called for nothing."""
from __future__ import annotations

import logging
import threading
import uuid
from collections.abc import Callable, Collection
from dataclasses import replace

import redis

from distributed_comfy.errors import DistributedComfyError, WorkerLost, WorkerNameTaken
from distributed_comfy.messages import ItemResult
from distributed_comfy.state.records import Claim, WorkerFacts
from distributed_comfy.state.workers import GiveBackReason
from tasks.cluster import Cluster

log = logging.getLogger(__name__)

_NAMES = 9
"""Masters of one host that may take part at the same time."""


class Guest:
    """One per process; registers with its first claim, and lives while its process does.

    Args:
        facts: about this ComfyUI; a number is added to the name where another master of this host has it.
    """

    def __init__(self, facts: WorkerFacts) -> None:
        self._facts = facts
        self._incarnation = ""
        self._held: set[str] = set()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._cluster: Cluster | None = None
        """Where it is registered."""

    @property
    def name(self) -> str:
        """In the table."""
        return self._facts.name

    def claim(self, cluster: Cluster, job_id: str, leaves: Collection[int] = ()) -> Claim | None:
        """An item of the job; None where there is none to have now.

        Args:
            cluster: where the job is.
            job_id: in its table.
            leaves: items that are left to workers.
        Raises:
            ClusterUnavailable: the table does not answer.
        """
        self._live(cluster)
        claim_id = uuid.uuid4().hex
        self._held.add(claim_id)
        try:
            claim = cluster.workers.claim(self.name, self._incarnation, claim_id, job_id, leaves)
        except WorkerLost:  # while this process stood still
            self._incarnation = ""
            claim = None
        except BaseException:
            self._held.discard(claim_id)  # if the table has given it an item, two signs of life give that back
            raise
        if claim is None:
            self._held.discard(claim_id)
        return claim

    def complete(self, cluster: Cluster, claim: Claim, result: ItemResult) -> bool:
        """See `WorkerTable.complete`."""
        try:
            return cluster.workers.complete(self.name, self._incarnation, claim, result)
        finally:
            self._held.discard(claim.claim_id)

    def give_back(self, cluster: Cluster, claim: Claim, how: GiveBackReason, error: DistributedComfyError | None = None) -> None:
        """See `WorkerTable.give_back`; a table that does not answer finds out by itself."""
        self._held.discard(claim.claim_id)
        try:
            cluster.workers.give_back(self.name, self._incarnation, claim, how, error)
        except (DistributedComfyError, redis.RedisError) as lost:
            log.info("item %d of job %s is not given back now (%s); the next sign of life does it", claim.index, claim.job_id, lost)

    def _live(self, cluster: Cluster) -> None:
        """Be registered, and stay so."""
        with self._lock:
            if cluster is not self._cluster:  # embedded servers that were started again are others
                self._cluster, self._incarnation, self._thread = cluster, "", None
            if not self._incarnation:
                self._register(cluster)
            if self._thread is None:
                self._thread = threading.Thread(target=self._renew, args=(cluster,), name=f"guest {self.name}", daemon=True)
                self._thread.start()

    def _register(self, cluster: Cluster) -> None:
        """
        Raises:
            WorkerNameTaken: all names are those of others.
        """
        own, incarnation = self._facts.name, uuid.uuid4().hex
        for number in range(1, _NAMES + 1):
            facts = self._facts if number == 1 else replace(self._facts, name=f"{own}-{number}")
            try:
                cluster.workers.register_guest(facts, incarnation)
            except WorkerNameTaken:
                if number == _NAMES:
                    raise
                continue
            self._facts, self._incarnation = facts, incarnation
            log.info("takes part as %s", facts.name)
            return

    def _renew(self, cluster: Cluster) -> None:
        """A sign of life again and again; ends where the guest was declared dead, until its next claim, or is another cluster's."""
        sleep: Callable[[float], bool] = threading.Event().wait
        try:
            while not sleep(cluster.settings.renew_interval_s) and self._cluster is cluster:
                try:
                    alive = cluster.workers.renew(self.name, self._incarnation, tuple(self._held)).alive
                except (DistributedComfyError, redis.RedisError) as error:
                    log.debug("guest %s: no sign of life (%s)", self.name, error)
                    continue
                if not alive:
                    log.warning("guest %s was declared dead; it registers anew with its next item", self.name)
                    break
        finally:
            with self._lock:
                if self._cluster is cluster:
                    self._incarnation, self._thread = "", None
