"""The state of a cluster as a page shows it, read by one thread for all pages of this process, and what changed in it.

Nobody looks, nothing is read: the thread starts with the first page and ends a while after the last one.
"""
from __future__ import annotations

import json
import logging
import secrets
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import redis

from distributed_comfy import __version__
from distributed_comfy.errors import DistributedComfyError, PanelFault, StateNotRead
from distributed_comfy.panel.composing import Composer, out_of_date
from distributed_comfy.panel.job_items import WatchedItems
from distributed_comfy.panel.job_views import Estimate
from distributed_comfy.panel.place import Place
from distributed_comfy.panel.pulse import Pulse
from distributed_comfy.panel.steps import Steps
from distributed_comfy.panel.words import told
from distributed_comfy.state.records import JobState
from tasks.cluster import Cluster

log = logging.getLogger(__name__)

TICK_S = 0.25
"""Between two looks while things happen: at most four changes a second."""
QUIET_TICK_S = 0.5
_QUIET_AFTER_S = 3.0
_LINGER_S = 10.0
_RETRY_S = 1.0
_KEPT_CHANGES = 64
_PARTS = ("servers", "master", "invites", "tunnel", "agent")
_TABLES = ("hosts", "workers", "jobs")


@dataclass(frozen=True)
class Change:
    """What differs from the revision before."""

    revision: int
    told: dict[str, Any]
    items: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Job -> index -> item, of jobs that somebody watches."""

    def text(self, job_id: str) -> str:
        """As JSON for a page that watches this job (or none); empty where it says nothing to it."""
        items = {job_id: self.items[job_id]} if job_id in self.items else {}
        if not items and self.told.keys() <= {"revision", "now_ms"}:
            return ""
        return json.dumps({**self.told, **({"items": items} if items else {})})


class Watch:
    """One per process; safe to use from several threads.

    Args:
        place: what serves the panel.
        tunnel: how the public address is, as ``Tunnel`` of openapi.json.
    """

    def __init__(self, place: Place, tunnel: Callable[[], dict[str, Any]]) -> None:
        self.steps = Steps()
        self._place = place
        self._composer = Composer(place, tunnel)
        self._pulse = Pulse()
        self._looked_at: Cluster | None = None
        self._items = WatchedItems(self.steps)
        self._watched: Counter[str] = Counter()
        self._instance = secrets.token_hex(8)
        self._state: dict[str, Any] = {}
        self._revision = 0
        self._changes: deque[Change] = deque(maxlen=_KEPT_CHANGES)
        self._changed = threading.Condition()
        self._listeners: set[Callable[[], None]] = set()
        self._viewers = 0
        self._seen_at = 0.0
        self._thread: threading.Thread | None = None
        self._ending = threading.Event()
        self._soon = threading.Event()
        self._faulty = ""
        """The last fault of ours, in words."""

    @property
    def now_ms(self) -> int:
        """Redis time of now, also while it is away; 0 before the first look."""
        return self._pulse.now_ms

    def jobs(self) -> Mapping[str, JobState]:
        """All jobs, as they were at the last look."""
        return self._pulse.found.jobs

    def estimate(self, job_id: str) -> Estimate:
        """Where a job stands, as it was known at the last look."""
        with self._changed:
            job = self._state.get("jobs", {}).get(job_id)
        return Estimate(job["position"], job["ends_ms"]) if job else Estimate()

    # -- for pages -------------------------------------------------------------------------------------------------------
    def state(self, timeout_s: float = 5.0) -> dict[str, Any]:
        """Everything, as ``State`` of openapi.json; waits for the first look.

        Raises:
            StateNotRead: there was no look yet, and cannot be.
        """
        with self._changed:
            self._wake()
            if not self._changed.wait_for(lambda: bool(self._state), timeout_s):
                raise StateNotRead(seconds=f"{timeout_s:g}")
            return self._snapshot()

    def snapshot(self, job_id: str) -> tuple[int, str]:
        """Revision and ``Snapshot`` for a page that watches this job (or none)."""
        with self._changed:
            items = {job_id: self._items.known(job_id)} if job_id else {}
            return self._revision, json.dumps({**self._snapshot(), "items": items})

    def since(self, revision: int) -> list[Change] | None:
        """What came after a revision; None where that is too long ago."""
        with self._changed:
            if revision == self._revision:
                return []
            found = [change for change in self._changes if change.revision > revision]
            return found if found and found[0].revision == revision + 1 else None

    @contextmanager
    def viewing(self, on_change: Callable[[], None], job_id: str = "") -> Iterator[None]:
        """Somebody looks while the context lasts, at the items of this job too; ``on_change`` is called from the thread."""
        with self._changed:
            self._viewers += 1
            self._listeners.add(on_change)
            if job_id:
                self._watched[job_id] += 1
            self._wake()
        try:
            yield
        finally:
            with self._changed:
                self._viewers -= 1
                self._listeners.discard(on_change)
                self._watched -= Counter([job_id] if job_id else [])
                self._seen_at = time.monotonic()

    def look_soon(self) -> None:
        """Something was ordered: look now instead of at the next tick."""
        self._soon.set()

    def end(self) -> None:
        """Stop looking; returns at once."""
        self._ending.set()
        self._soon.set()

    # -- the thread ------------------------------------------------------------------------------------------------------
    def _wake(self) -> None:
        self._seen_at = time.monotonic()
        if (self._thread is None or not self._thread.is_alive()) and not self._ending.is_set():
            self._state = {}  # what was known when nobody looked is of no use
            self._thread = threading.Thread(target=self._work, name="panel", daemon=True)
            self._thread.start()

    def _work(self) -> None:
        stop, changed_at = threading.Event(), time.monotonic()
        self._pulse.begin()
        self._composer.begin()
        threading.Thread(target=self.steps.listen, args=(self._place.cluster, stop), name="panel progress", daemon=True).start()
        try:
            while not self._is_over():
                began = time.monotonic()
                wait_s = TICK_S if began - changed_at < _QUIET_AFTER_S else QUIET_TICK_S
                up = self._tick()
                if self._publish():
                    changed_at = time.monotonic()
                self._soon.wait(max(0.05, wait_s - (time.monotonic() - began)) if up else _RETRY_S)
                self._soon.clear()
        finally:
            stop.set()

    def _is_over(self) -> bool:
        """Whether nobody looks any more; the thread has given its place up then."""
        with self._changed:
            unseen = not self._viewers and time.monotonic() - self._seen_at > _LINGER_S
            if unseen or self._ending.is_set():
                self._thread = None
                return True
            return False

    def _tick(self) -> bool:
        """Look once; False where the state server could not be asked."""
        try:
            cluster = self._place.cluster()
            if cluster is not self._looked_at:  # another cluster, of which nothing is known
                self._looked_at, self._pulse = cluster, Pulse()
                self._composer.begin()
            self._pulse.look(cluster)
            with self._changed:
                watched = [job_id for job_id in self._watched if self._watched[job_id] > 0]
            self._items.look(cluster, watched, self._pulse.found.jobs)
        except (DistributedComfyError, redis.RedisError) as error:
            log.debug("panel: %s", error)
            self._pulse.fail(error)
            return False
        except Exception as error:  # noqa: BLE001 - a fault of ours must not freeze every page, and each must say that what it shows is old
            self._pulse.fail(self._fault(error))
            return False
        return True

    def _fault(self, error: Exception) -> PanelFault:
        """In the log once for as long as it stays the same; and as pages are told it."""
        words = f"{type(error).__name__}: {error}"
        if words != self._faulty and not self._ending.is_set():  # connections are being closed then
            log.exception("the panel cannot show the state of the cluster; please report it", exc_info=error)
            self._faulty = words
        return PanelFault(reason=words[:200])

    def _composed(self) -> dict[str, Any]:
        """What pages are to show; what was known before, and that this is so, where it cannot be made."""
        try:
            return self._composer.compose(self._pulse, self.steps.all())
        except Exception as error:  # noqa: BLE001 - as there
            failure, before = told(self._fault(error)), self._state
            if not before:
                return {}
            servers, health = before["servers"], before["servers"]["state"]
            since_ms = self.now_ms if health["up"] else health["down_since_ms"]
            health = {**health, "up": False, "error": failure, "down_since_ms": since_ms}
            return out_of_date({**before, "servers": {**servers, "state": health}}, since_ms)

    def _publish(self) -> bool:
        """Tell pages what is different; whether anything is."""
        state, items = self._composed(), self._items.changes()
        if not state:  # nothing was ever known
            return False
        with self._changed:
            differs = difference(self._state, state)
            first = not self._state
            self._state = state
            if not differs and not items and not first:
                return False
            self._revision += 1
            if not first:
                now_ms = self._pulse.now_ms
                self._changes.append(Change(self._revision, {"revision": self._revision, "now_ms": now_ms, **differs}, items))
            self._changed.notify_all()
            for listener in tuple(self._listeners):
                listener()
        return True

    def _snapshot(self) -> dict[str, Any]:
        return {
            "revision": self._revision, "instance": self._instance, "now_ms": self._pulse.now_ms, "version": __version__,
            "host": self._place.settings.host_name, "user": self._place.settings.submitter, "kind": self._place.kind, **self._state,
        }  # fmt: skip


def difference(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """What ``change`` tells: parts that differ, and of tables the rows that do, None for those that are gone."""
    told: dict[str, Any] = {name: after[name] for name in _PARTS if before.get(name) != after[name]}
    for name in _TABLES:
        old, new = before.get(name, {}), after[name]
        rows = {key: row for key, row in new.items() if old.get(key) is not row and old.get(key) != row}
        rows.update(dict.fromkeys(old.keys() - new.keys()))
        if rows:
            told[name] = rows
    return told
