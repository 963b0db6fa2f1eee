"""One item that the master feeds while it runs: the last stage, or the item that makes the image to upscale."""
from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

from distributed_comfy.collector.feed import Feeder, FeedPlan
from distributed_comfy.state.records import ItemState


class FedItem:
    """Unblocks the item once, and again where the table forgot; feeds whoever runs it, and nobody else.

    Args:
        plan: of its feed.
        unblock: makes it claimable.
        feeder: for the plan.
        threads: with one to spare while the item runs.
    """

    def __init__(self, plan: FeedPlan, unblock: Callable[[str], None], feeder: Feeder, threads: ThreadPoolExecutor) -> None:
        self._plan = plan
        self._unblock = unblock
        self._feeder = feeder
        self._threads = threads
        self._feeding: _Feeding | None = None
        unblock(plan.json)

    def go_on(self, state: ItemState) -> None:
        """Act on what the table says of the item."""
        if state.state == "blocked":
            self._unblock(self._plan.json)
        self._feed(state.claim_id if state.state == "running" else "")

    def end(self) -> None:
        """Stop feeding, and wait until nothing is left of it."""
        if self._feeding is not None:
            self._feeding.end()
            self._feeding = None

    def _feed(self, claim_id: str) -> None:
        """Feed this claim and no other; none with an empty id."""
        if self._feeding is not None and self._feeding.future.done():
            self._feeding.future.result()
        if self._feeding is not None and self._feeding.claim_id != claim_id:
            self.end()
        if claim_id and self._feeding is None:
            self._feeding = _Feeding.begin(self._feeder, claim_id, self._threads)


@dataclass(frozen=True)
class _Feeding:
    """A feeder at work."""

    claim_id: str
    stop: threading.Event
    future: Future[bool]

    @classmethod
    def begin(cls, feeder: Feeder, claim_id: str, threads: ThreadPoolExecutor) -> _Feeding:
        stop = threading.Event()
        return cls(claim_id, stop, threads.submit(feeder.run, claim_id, stop))

    def end(self) -> None:
        """Stop it and wait until it cleaned up."""
        self.stop.set()
        wait([self.future])
