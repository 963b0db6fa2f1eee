"""What a worker is doing and has done, for its status: told by the threads that do it, read by the one that tells it."""
from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from distributed_comfy.engine.protocol import Progress
from distributed_comfy.errors import DistributedComfyError
from distributed_comfy.messages import RunRequest, item_id
from distributed_comfy.state.status import LastError, RunningItem

_WORDS = 300
_REMEDY_WORDS = 250
"""Characters of an error's sentence that are kept."""
_SAME_S = 5.0
"""An engine's end within this time of the failure of its item is the same."""

Clock = Callable[[float], int]
"""Monotonic time of this process -> Redis time in ms."""


@dataclass(frozen=True)
class _Begun:
    request: RunRequest
    at: float
    node_id: str = ""
    value: int = 0
    maximum: int = 0
    shipping: bool = False
    waits: str = ""


class WorkerActivity:
    """Items that run, counters, and the last error; every method may be called from any thread.

    Args:
        changed: called after whatever changes the worker's state; must not block.
    """

    def __init__(self, changed: Callable[[], None]) -> None:
        self._changed = changed
        self._lock = threading.Lock()
        self._begun: dict[str, _Begun] = {}
        self._done = 0
        self._failed = 0
        self._error: tuple[DistributedComfyError, float, str] | None = None

    def begin(self, request: RunRequest) -> None:
        """An item is the worker's to run."""
        with self._lock:
            self._begun[request.claim_id] = _Begun(request, time.monotonic())
        self._changed()

    def step(self, progress: Progress) -> None:
        """A node of an item did a step; too frequent to be a change of state."""
        with self._lock:
            begun = self._begun.get(progress.claim_id)
            if begun is not None:
                stepped = replace(begun, node_id=progress.node_id, value=progress.value, maximum=progress.maximum)
                self._begun[progress.claim_id] = stepped

    def ship(self, claim_id: str) -> None:
        """An item was executed; its result is on the way."""
        with self._lock:
            if begun := self._begun.get(claim_id):
                self._begun[claim_id] = replace(begun, shipping=True)
        self._changed()

    def wait(self, claim_id: str, reason: str) -> None:
        """An item's result cannot be stored now; or, with an empty reason, it can."""
        with self._lock:
            if begun := self._begun.get(claim_id):
                self._begun[claim_id] = replace(begun, waits=in_short(reason))
        self._changed()

    def done(self) -> None:
        """The table has taken a result."""
        with self._lock:
            self._done += 1

    def failed(self, error: DistributedComfyError, item: str) -> None:
        """An attempt failed here."""
        with self._lock:
            self._failed += 1
            self._error = (error, time.monotonic(), item)

    def trouble(self, error: DistributedComfyError) -> None:
        """The engine failed; an item that it had fails as well, and is told then."""
        now = time.monotonic()
        with self._lock:
            before = self._error
            if before is None or before[0].code != error.code or now - before[1] > _SAME_S:
                self._error = (error, now, "")
        self._changed()

    def end(self, claim_id: str) -> None:
        """The claim is over, however; one that never began an item is none."""
        with self._lock:
            ended = self._begun.pop(claim_id, None)
        if ended is not None:
            self._changed()

    def counts(self) -> tuple[int, int]:
        """Items done, and attempts failed."""
        with self._lock:
            return self._done, self._failed

    def items(self, clock: Clock) -> tuple[RunningItem, ...]:
        """The items under way, oldest first."""
        with self._lock:
            return tuple(_shown(begun, clock) for begun in self._begun.values())

    def last_error(self, clock: Clock) -> LastError | None:
        """What went wrong last; None while nothing has."""
        with self._lock:
            found = self._error
        if found is None:
            return None
        error, at, item = found
        return LastError(error.code, in_short(str(error)), clock(at), item)


def in_short(text: str) -> str:
    """A text in one line, without the end of a long one; what to do, behind the last semicolon, is no such end."""
    words = " ".join(text.split())
    if len(words) <= _WORDS:
        return words
    wrong, between, remedy = words.rpartition("; ")
    if not between or len(remedy) > _REMEDY_WORDS:
        return words[: _WORDS - 1] + "…"
    return f"{wrong[: max(_WORDS - len(remedy), _WORDS // 2)]}…; {remedy}"


def _shown(begun: _Begun, clock: Clock) -> RunningItem:
    request = begun.request
    node = request.original_prompt.get(begun.node_id) or request.prompt.get(begun.node_id)
    return RunningItem(
        item=item_id(request.job_id, request.index),
        kind=request.kind,
        attempt=request.attempt,
        started_ms=clock(begun.at),
        node_id=begun.node_id,
        node_class=str(node["class_type"]) if node else "",
        value=begun.value,
        maximum=begun.maximum,
        shipping=begun.shipping,
        waits=begun.waits,
    )
