"""Which claims an engine process has and how far each is, and when its work last showed a sign of life."""
from __future__ import annotations

import threading
import time
from enum import Enum


class Stage(Enum):
    """How far a claim is inside the engine process."""

    QUEUED = "queued"
    RUNNING = "running"
    SHIPPING = "shipping"


class ClaimBook:
    """The claims of one engine process; every method may be called from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._stages: dict[str, Stage] = {}
        self._items: dict[str, str] = {}
        self._interrupted: set[str] = set()

    def add(self, claim_id: str, item: str) -> bool:
        """A claim arrived and waits; False if it is here already (an order that was sent twice).

        Args:
            item: the item's id, for messages.
        """
        with self._lock:
            if claim_id in self._stages:
                return False
            self._stages[claim_id], self._items[claim_id] = Stage.QUEUED, item
            return True

    def advance(self, claim_id: str, stage: Stage) -> bool:
        """A claim goes on to ``stage``; False if it was interrupted or ended before and must not."""
        with self._lock:
            if claim_id not in self._stages or claim_id in self._interrupted:
                return False
            self._stages[claim_id] = stage
            return True

    def interrupt(self, claim_id: str) -> tuple[Stage | None, str]:
        """Mark a claim; one that waits ends at once.

        Returns:
            (where it was, its item); (None, "") for a claim that is not here (any more).
        """
        with self._lock:
            stage, item = self._stages.get(claim_id), self._items.get(claim_id, "")
            if stage is Stage.QUEUED:
                del self._stages[claim_id], self._items[claim_id]
            elif stage is not None:
                self._interrupted.add(claim_id)
            return stage, item

    def is_interrupted(self, claim_id: str) -> bool:
        """Whether a claim is marked."""
        with self._lock:
            return claim_id in self._interrupted

    def end(self, claim_id: str) -> None:
        """A claim was answered."""
        with self._lock:
            self._stages.pop(claim_id, None)
            self._items.pop(claim_id, None)
            self._interrupted.discard(claim_id)

    def all(self) -> list[str]:
        """Every claim, in the order of arrival."""
        with self._lock:
            return list(self._stages)


class LifeSign:
    """When one kind of work (executing, shipping) last moved."""

    def __init__(self) -> None:
        self._last: float | None = None

    def touch(self) -> None:
        """The work moved, or begins."""
        self._last = time.monotonic()

    def rest(self) -> None:
        """There is nothing to do."""
        self._last = None

    @property
    def quiet_s(self) -> float:
        """Seconds since the work moved; 0 while there is none."""
        last = self._last
        return 0.0 if last is None else time.monotonic() - last
