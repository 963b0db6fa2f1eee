"""What the collector asks of the table of truth; the Redis job table satisfies it, `MemoryJobTable` does so without a server."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from distributed_comfy.messages import ItemResult, ItemSpec
from distributed_comfy.state.jobs import FinishedItem
from distributed_comfy.state.records import ItemState, JobEvent, JobState


class JobTable(Protocol):
    """The collector's view of the table; every call may raise `ConnectionLost` or `RedisUnreachable`, which are waited out.

    Calls come from several threads.  All that change something are idempotent.
    """

    def wait_events(self, job_id: str, cursor: str, block_s: float) -> tuple[str, list[JobEvent]]:
        """Events after ``cursor``.

        Args:
            cursor: where the last call ended; empty for events from now on.
            block_s: how long to wait for the first one; 0 returns at once.
        Returns:
            The new cursor and the events, oldest first; none after ``block_s``.
        """

    def item_states(self, job_id: str) -> dict[int, ItemState]:
        """The truth about every item."""

    def result(self, job_id: str, index: int) -> tuple[str, ItemResult] | None:
        """Claim id and result of a done item; None where it is not done."""

    def mark_fetched(self, job_id: str, index: int, claim_id: str) -> None:
        """The item's blobs are unlinked: its bytes are no longer in flight."""

    def reopen(self, job_id: str, index: int, claim_id: str) -> bool:
        """A blob of this result is gone or damaged: run the item again.

        Counts as an attempt, so that a result that is damaged each time fails the item in the end.

        Returns:
            False where the item is not done by this claim (any more).
        """

    def extend(self, job_id: str, specs: Sequence[ItemSpec], *, finished: Sequence[FinishedItem] = (), final: bool = False) -> bool:
        """Add items to a job that grows, all blocked but those that are finished; those that it has stay as they are.

        Args:
            final: there will be no more.
        Returns:
            False where something would change, but the job has ended or does not grow.
        """

    def restore(self, job_id: str, finished: Sequence[FinishedItem]) -> bool:
        """These items are in the spool, so they are done, whatever a crash made the table forget; those that are done or failed stay.

        Returns:
            False where the job has ended.
        """

    def unblock(self, job_id: str, ready: Sequence[tuple[int, str]]) -> bool:
        """Make items claimable, each with its feed as JSON, in this order; those that are not blocked stay as they are.

        Returns:
            False where one of them is blocked and the job has ended.
        """

    def job_state(self, job_id: str) -> JobState:
        """The truth about the job."""
