"""Interrupts by claim id that survive ComfyUI's habit of forgetting them."""
from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

REASSERT_INTERVAL_S = 0.05
"""How often a running prompt is told again to stop."""


class InterruptLatch:
    """Remembers which claims are to stop and tells ComfyUI until the run is over.

    ComfyUI clears its flag when a prompt starts, when a node notices it, and nodes may swallow the exception; so setting it once is
    not enough.  The flag may stay set after the run: the next prompt clears it.
    """

    def __init__(self, set_flag: Callable[[], None]) -> None:
        self._set_flag = set_flag
        self._lock = threading.Lock()
        self._early: deque[str] = deque(maxlen=256)
        self._running = ""
        self._stop_requested = threading.Event()
        self._over = threading.Event()

    @property
    def requested(self) -> bool:
        """True if the running claim was interrupted."""
        return self._stop_requested.is_set()

    def begin(self, claim_id: str) -> bool:
        """A run starts; False if it was interrupted before."""
        with self._lock:
            self._running, self._over, self._stop_requested = claim_id, threading.Event(), threading.Event()
            if claim_id in self._early:
                self._early.remove(claim_id)
                self._stop_requested.set()
        return not self.requested

    def end(self) -> None:
        """The run is over; its interrupt is forgotten."""
        with self._lock:
            self._running = ""
            self._over.set()

    def request(self, claim_id: str) -> None:
        """Stop the run of this claim, now or when it begins; may be called from any thread."""
        with self._lock:
            if claim_id != self._running:
                self._early.append(claim_id)
            elif not self.requested:
                self._stop_requested.set()
                self._set_flag()
                threading.Thread(target=self._reassert, args=(self._over,), name="interrupt", daemon=True).start()

    def _reassert(self, over: threading.Event) -> None:
        while not over.wait(REASSERT_INTERVAL_S):
            self._raise_flag(over)

    def _raise_flag(self, over: threading.Event) -> None:
        with self._lock:  # so that it never falls into the next run
            if not over.is_set():
                self._set_flag()
