"""What Redis says of a cluster, read as seldom and in as few round trips as the page allows.

Each look is one pipeline: marks that tell whether anything happened to jobs at all, and the statuses of workers as text, which are only
taken apart where they differ from the last ones.  Rows of workers and records of hosts follow once a second, servers every five seconds.
"""
from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from typing import Any

import redis

from distributed_comfy.errors import DistributedComfyError, MessageVersionUnknown
from distributed_comfy.messages import load
from distributed_comfy.panel.server_looks import BlobServer, Server, examine
from distributed_comfy.panel.unserved import Unserved, Words
from distributed_comfy.panel.words import told
from distributed_comfy.state.connection import in_our_words, setting_of
from distributed_comfy.state.figures import KINDS
from distributed_comfy.state.keys import Keys
from distributed_comfy.state.records import GoneHost, HostRecord, JobState, WorkerState
from distributed_comfy.state.status import WorkerStatus
from distributed_comfy.state.tallies import histogram
from tasks.cluster import Cluster

log = logging.getLogger(__name__)

_ROWS_S = 1.0
_JOBS_S = 2.0
"""Between two looks at jobs of which no mark says that anything happened."""
_SERVERS_S = 5.0
_STILL_MS = 1500


@dataclass
class Findings:
    """What was read last; what cannot be read stays as it was."""

    now_ms: int = 0
    rows: dict[str, WorkerState] = field(default_factory=dict)
    hosts: dict[str, HostRecord] = field(default_factory=dict)
    gone: dict[str, GoneHost] = field(default_factory=dict)
    """Hosts that are not heard of any more, by name."""
    statuses: dict[str, WorkerStatus] = field(default_factory=dict)
    jobs: dict[str, JobState] = field(default_factory=dict)
    unserved: dict[str, Words] = field(default_factory=dict)
    """Job -> why nobody can run it."""
    item_s: float = 0.0
    """Mean engine time of an item; 0: none is done yet."""
    invites: int = -1
    state: Server = field(default_factory=Server)
    blobs: Server = field(default_factory=Server)


class Pulse:
    """Reads one cluster; used by one thread.

    Args:
        now: a clock, in seconds.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self.found = Findings()
        self.jobs_changed = True
        """Whether the last look found anything else about jobs."""
        self.answered: frozenset[str] = frozenset()
        """Which of ``state`` and ``blobs`` have answered since `begin`."""
        self._back_at = float("-inf")
        """When the state server was there again."""
        self._looked_at = 0.0
        self._now = now
        self._was_away = False
        self._named: set[str] = set()
        """Of workers and guests, at the last look at their rows."""
        self._texts: dict[str, str] = {}
        self._marks: tuple[Any, ...] = ()
        self._listed: tuple[Any, ...] = ()
        self._due: dict[str, float] = {}
        self._blobs = BlobServer()
        self._unserved = Unserved()

    @property
    def now_ms(self) -> int:
        """Redis time of now, also while it is away; 0 before the first look."""
        return self.found.now_ms + round((self._now() - self._looked_at) * 1000) if self.found.now_ms else 0

    def begin(self) -> None:
        """Nobody has looked for a while: how the servers were meanwhile is not known."""
        self.answered = frozenset()
        self._blobs.begin()

    def look(self, cluster: Cluster) -> None:
        """Read what is due.

        Raises:
            ClusterUnavailable, redis.RedisError: the state server does not answer; `state` says so.
        """
        separate = cluster.redis_url != cluster.blob_url  # one may be away then while the other answers
        self.found.blobs = self._blobs.look(cluster) if separate else self.found.state
        if separate and self._blobs.answered:
            self.answered |= {"blobs"}
        try:
            self._look(cluster)
        except (DistributedComfyError, redis.RedisError) as error:
            self.fail(error)
            raise
        self.found.state.up, self.found.state.error = True, None
        self.answered |= {"state"} if separate else {"state", "blobs"}

    def fail(self, error: DistributedComfyError | redis.RedisError) -> None:
        """The state server cannot be asked; all else stays as it was known last."""
        self.found.state.up, self.found.state.error = False, told(error)
        self._was_away = True
        self.jobs_changed = False
        self._due.clear()  # when it is back, everything may be different
        self._marks, self._listed = (), ()

    def _look(self, cluster: Cluster) -> None:
        keys, client = Keys(cluster.settings.key_prefix), cluster.client
        names = sorted({*self.found.rows, *(own.name for record in self.found.hosts.values() for own in record.workers)})
        pipe = client.pipeline(transaction=False)
        pipe.time()
        pipe.mget(keys("sequence"), keys("served"))
        pipe.hgetall(keys("tallies"))
        pipe.zcard(keys("jobs"))
        pipe.smembers(keys("active"))
        pipe.sunion([keys("workers"), keys("guests")])
        if names:
            pipe.mget([keys("status", name) for name in names])
        clock, counters, tallies, count, active, workers, *texts = _reply(cluster, pipe.execute)
        self.found.now_ms, self._looked_at = int(clock[0]) * 1000 + int(clock[1]) // 1000, self._now()
        if self._was_away:
            self._was_away, self._back_at = False, self._now()
        self._take_statuses(dict(zip(names, texts[0], strict=True)) if names else {})
        self._look_at_jobs(cluster, keys, (tuple(counters), tuple(sorted(tallies.items()))), (count, counters[0]), active)
        self.found.item_s = _item_s({name: int(value) for name, value in tallies.items()})
        if self._is_due("rows", _ROWS_S, force=set(workers) != self._named):
            self._look_at_rows(cluster, set(workers))
        if self._is_due("unserved", _JOBS_S):
            self.found.unserved = self._unserved.look(cluster, self.found.jobs)
        if self._is_due("servers", _SERVERS_S):
            self._look_at_servers(cluster)

    # -- workers and hosts -----------------------------------------------------------------------------------------------
    def _take_statuses(self, texts: dict[str, str | None]) -> None:
        known = self.found.statuses
        for name, text in texts.items():
            if text is None:
                known.pop(name, None)
            elif text != self._texts.get(name) or name not in known:
                try:
                    known[name] = load(WorkerStatus, text)
                except MessageVersionUnknown as error:
                    log.debug("the status of %s cannot be read: %s", name, error)
                    known.pop(name, None)
        for name in known.keys() - texts.keys():
            del known[name]
        self._texts = {name: text for name, text in texts.items() if text is not None}

    def _look_at_rows(self, cluster: Cluster, names: set[str]) -> None:
        """Guests are not in the table's own list of workers; one that gives no sign of life is only an item that runs elsewhere by now."""
        rows = cluster.workers.workers(sorted(names))
        self._named = names
        self.found.rows = {row.facts.name: without_lease(row) for row in rows if row.capability or row.state != "lost"}
        living, gone = cluster.hosts.known()
        hosts = {record.host: record for record in living}
        if self._now() < self._back_at + cluster.settings.lease_ttl_s:  # leases ran out while nobody could renew them
            hosts.update({name: self.found.hosts[name] for host in gone if (name := host.record.host) in self.found.hosts})
        self.found.hosts = hosts
        self.found.gone = {host.record.host: self._steady(host) for host in gone if host.record.host not in hosts}

    def _steady(self, host: GoneHost) -> GoneHost:
        """With the time of before, where it is the same but for what a look takes: pages are told only what differs."""
        before = self.found.gone.get(host.record.host)
        return before if before and before.record == host.record and abs(before.seen_ms - host.seen_ms) < _STILL_MS else host

    # -- jobs ------------------------------------------------------------------------------------------------------------
    def _look_at_jobs(
        self, cluster: Cluster, keys: Keys, marks: tuple[Any, ...], listed: tuple[Any, ...], active: Collection[str]
    ) -> None:
        """Those that are new, those that have not ended, and those that had not at the last look."""
        happened = marks != self._marks or listed != self._listed
        self.jobs_changed = False
        if not self._is_due("jobs", _JOBS_S, force=happened):
            return
        known = self.found.jobs
        ids: list[str] = list(known)
        if listed != self._listed:
            ids = list(_reply(cluster, lambda: cluster.client.zrange(keys("jobs"), 0, -1)))
        wanted = [job_id for job_id in ids if job_id not in known or job_id in active or not known[job_id].ended]
        found = cluster.jobs.jobs(wanted) if wanted else {}
        failed = [job_id for job_id, state in found.items() if state.state == "failed"]
        for job_id, error in (cluster.jobs.errors(failed) if failed else {}).items():
            found[job_id] = replace(found[job_id], error=error)
        unread = known.keys() - set(wanted)
        after = {job_id: _same(known.get(job_id), found.get(job_id)) for job_id in ids if job_id in found or job_id in unread}
        self.jobs_changed = after != known
        self.found.jobs = after
        self._marks, self._listed = marks, listed

    # -- servers ---------------------------------------------------------------------------------------------------------
    def _look_at_servers(self, cluster: Cluster) -> None:
        examine(self.found.state, cluster.client)
        if cluster.invites is not None:
            invited: Any = cluster.client.hlen(Keys(cluster.settings.key_prefix)("invites"))
            self.found.invites = int(invited)

    def _is_due(self, what: str, every_s: float, *, force: bool = False) -> bool:
        now = self._now()
        if not force and now < self._due.get(what, 0.0):
            return False
        self._due[what] = now + every_s
        return True


def _same(before: JobState | None, now: JobState | None) -> JobState:
    """The state of now; the very object of before where that is equal."""
    found = before if now is None or before == now else now
    assert found is not None
    return found


def without_lease(row: WorkerState) -> WorkerState:
    """A row without what differs at each look, so that equal rows are equal."""
    return replace(row, lease_ms=0, engine_s=0.0, memory=None)


def _item_s(tallies: dict[str, int]) -> float:
    found = [histogram(tallies, "run", kind) for kind in KINDS]
    count = sum(each.buckets[-1][1] for each in found)
    return sum(each.sum_s for each in found) / count if count else 0.0


def _reply(cluster: Cluster, call: Callable[[], Any]) -> Any:
    """What a call gets from the state server, with a lost connection in our own words."""
    try:
        return call()
    except redis.RedisError as error:
        known = in_our_words(error, "the state Redis", setting_of(cluster.client))
        if known is None:
            raise
        raise known from error
