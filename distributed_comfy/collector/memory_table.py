"""A job's table of truth in this process, with the rules of the Redis one: for jobs without a cluster, and for tests of the collector."""
from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from distributed_comfy.messages import ItemResult, ItemSpec
from distributed_comfy.state.jobs import FinishedItem
from distributed_comfy.state.records import EventKind, ItemState, JobEvent, JobState


@dataclass
class _Row:
    state: ItemState
    result: ItemResult | None = None
    fetched: bool = False


class MemoryJobTable:
    """One job's table in this process; the methods below the protocol's play the workers.

    Args:
        items: number of items, the last stage included.
        has_last_stage: the last item starts blocked.
        max_attempts: reopened items fail after this many.
        spare: the job can do without some generated items, as long as one is left.
        grows: tiles will be added: the job is not done before that.
    """

    def __init__(
        self, items: int, *, has_last_stage: bool = False, max_attempts: int = 3, spare: bool = False, grows: bool = False
    ) -> None:
        self._rows = {index: _Row(ItemState("pending")) for index in range(items)}
        if has_last_stage:
            self._rows[items - 1] = _Row(ItemState("blocked"))
        self._max_attempts = max_attempts
        self._generated = items - has_last_stage
        self._spare, self._grows = spare, grows
        self._events: list[JobEvent] = []
        self._job = JobState("pending")
        self._changed = threading.Condition(threading.RLock())
        self.feed_json = ""
        """What `unblock` was given last."""
        self.feeds: dict[int, str] = {}
        """What it was given for each item."""

    def block(self, index: int) -> None:
        """Let an item that is not a generated one wait for `unblock`, before anything begins."""
        self._rows[index].state = ItemState("blocked")
        self._generated = min(self._generated, index)

    # -- the protocol
    def wait_events(self, job_id: str, cursor: str, block_s: float) -> tuple[str, list[JobEvent]]:
        """As `JobTable.wait_events`; the cursor is a position in the list."""
        with self._changed:
            start = int(cursor) if cursor else len(self._events)
            self._changed.wait_for(lambda: len(self._events) > start, timeout=block_s)
            return str(len(self._events)), self._events[start:]

    def item_states(self, job_id: str) -> dict[int, ItemState]:
        """As `JobTable.item_states`."""
        with self._changed:
            return {index: row.state for index, row in self._rows.items()}

    def result(self, job_id: str, index: int) -> tuple[str, ItemResult] | None:
        """As `JobTable.result`."""
        with self._changed:
            row = self._rows.get(index, _Row(ItemState("blocked")))
            return (row.state.claim_id, row.result) if row.state.state == "done" and row.result is not None else None

    def mark_fetched(self, job_id: str, index: int, claim_id: str) -> None:
        """As `JobTable.mark_fetched`."""
        with self._changed:
            if self._is(index, "done", claim_id):
                self._rows[index].fetched = True

    def reopen(self, job_id: str, index: int, claim_id: str) -> bool:
        """As `JobTable.reopen`."""
        with self._changed:
            if not self._is(index, "done", claim_id):
                return False
            if self._job.state in ("failed", "cancelled"):
                return False
            old = self._rows[index].state
            if old.attempts >= self._max_attempts:
                wire = {"code": "blob_missing", "fields": {"blob": f"of item {index}"}}
                self._set(index, replace(old, state="failed", error=wire), "failed")
                self.end("failed", error=wire)
            else:
                self._job = JobState("running")
                self._set(index, ItemState("pending", attempts=old.attempts), "released")
            return True

    def extend(self, job_id: str, specs: Sequence[ItemSpec], *, finished: Sequence[FinishedItem] = (), final: bool = False) -> bool:
        """As `JobTable.extend`."""
        with self._changed:
            added = [spec.index for spec in specs if spec.index not in self._rows]
            closes = final and self._grows
            if not added and not closes:
                return True
            if self._job.ended or not self._grows:
                return False
            done = {item.index: item for item in finished}
            for index in added:
                self._rows[index] = _Row(ItemState("blocked"))
                if index in done:
                    state = ItemState("done", done[index].claim_id, done[index].result.worker)
                    self._rows[index] = _Row(state, done[index].result, fetched=True)
            self._grows = not closes
            self._end_if_over()
            return True

    def restore(self, job_id: str, finished: Sequence[FinishedItem]) -> bool:
        """As `JobTable.restore`."""
        with self._changed:
            if self._job.ended:
                return False
            for item in finished:
                row = self._rows.get(item.index)
                if row is not None and row.state.state not in ("done", "failed"):
                    row.result, row.fetched = item.result, True
                    self._set(item.index, ItemState("done", item.claim_id, item.result.worker, row.state.attempts), "done")
            self._end_if_over()
            return True

    def unblock(self, job_id: str, ready: Sequence[tuple[int, str]]) -> bool:
        """As `JobTable.unblock`."""
        with self._changed:
            for index, feed_json in ready:
                if index in self._rows and self._rows[index].state.state == "blocked":
                    if self._job.ended:
                        return False
                    self.feed_json = self.feeds[index] = feed_json
                    self._set(index, ItemState("pending"), "released")
            return True

    def job_state(self, job_id: str) -> JobState:
        """As `JobTable.job_state`."""
        with self._changed:
            states = [row.state.state for row in self._rows.values()]
            return replace(self._job, counts={state: states.count(state) for state in set(states)})

    # -- the workers
    def claim(self, index: int, claim_id: str, worker: str = "w0") -> bool:
        """A worker takes a pending item."""
        with self._changed:
            old = self._rows[index].state
            if old.state != "pending" or self._job.ended:
                return False
            self._set(index, ItemState("running", claim_id, worker, old.attempts + 1), "claimed")
            return True

    def complete(self, index: int, claim_id: str, result: ItemResult) -> bool:
        """The worker of this claim hands in the result; the job is done with its last item."""
        with self._changed:
            if not self._is(index, "running", claim_id):
                return False
            self._rows[index].result, self._rows[index].fetched = result, False
            self._set(index, replace(self._rows[index].state, state="done"), "done")
            self._end_if_over()
            return True

    def _end_if_over(self) -> None:
        if not self._grows and all(row.state.state in ("done", "failed") for row in self._rows.values()):
            self.end("done")

    def fail(self, index: int, claim_id: str, error: dict[str, Any]) -> None:
        """The item fails for good, and the job with it unless it can do without."""
        with self._changed:
            self._set(index, replace(self._rows[index].state, state="failed", claim_id=claim_id, error=error), "failed")
            left = any(self._rows[other].state.state != "failed" for other in range(self._generated))
            if self._spare and left and index < self._generated:
                self._end_if_over()
            else:
                self.end("failed", error=error)

    def lose_worker(self, index: int) -> None:
        """What the reaper does: a running item goes back to pending."""
        with self._changed:
            if self._rows[index].state.state == "running":
                self._set(index, ItemState("pending", attempts=self._rows[index].state.attempts), "released")

    def end(self, state: Literal["done", "failed", "cancelled"], *, error: dict[str, Any] | None = None, reason: str = "") -> None:
        """End the job."""
        with self._changed:
            self._job = JobState(state, error=error, reason=reason)
            self.announce([JobEvent("job")])

    def announce(self, events: Iterable[JobEvent]) -> None:
        """Wake the collector, truthfully or not."""
        with self._changed:
            self._events.extend(events)
            self._changed.notify_all()

    def fetched(self, index: int) -> bool:
        """True once the collector marked the item."""
        with self._changed:
            return self._rows[index].fetched

    def forget(self, index: int) -> None:
        """What a crash of the server does to what it was told last: an unblocked item is blocked again."""
        with self._changed:
            self._rows[index].state = ItemState("blocked")

    def roll_back(self, index: int) -> None:
        """What such a crash does to an item that was completed last: it is pending again."""
        with self._changed:
            self._rows[index] = _Row(ItemState("pending"))

    def _is(self, index: int, state: str, claim_id: str) -> bool:
        row = self._rows[index].state
        return row.state == state and row.claim_id == claim_id

    def _set(self, index: int, state: ItemState, event: EventKind) -> None:
        self._rows[index].state = state
        self.announce([JobEvent(event, index, state.claim_id, state.worker)])
