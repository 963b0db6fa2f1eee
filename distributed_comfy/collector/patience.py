"""Waiting out a server that does not answer, in all threads of a collector together."""
from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError
from typing import TypeVar

from distributed_comfy.errors import BlobStoreFull, ClusterUnavailable, ConnectionLost

log = logging.getLogger(__name__)
T = TypeVar("T")

FIRST_WAIT_S = 0.05
LONGEST_WAIT_S = 2.0


class Patience:
    """Calls a server again and again while it cannot be reached, and says so once per outage.

    Args:
        what: for the log, such as ``job 3f9a12bc77d0``.
        stop: set when nobody waits for the result any more.
    """

    def __init__(self, what: str, stop: threading.Event) -> None:
        self._what = what
        self._stop = stop
        self._down = False
        self._lock = threading.Lock()

    def call(self, ask: Callable[..., T], *arguments: object) -> T:
        """``ask(*arguments)``, which must be idempotent, as soon as its server answers.

        Raises:
            CancelledError: ``stop`` was set first.
            Whatever ``ask`` raises that waiting does not mend, such as a wrong password.
        """
        wait_s = FIRST_WAIT_S
        while True:
            try:
                answer = ask(*arguments)
            except (ConnectionLost, ClusterUnavailable, BlobStoreFull) as error:
                if not error.retryable:
                    raise
                self._note(error)
            else:
                self._note(None)
                return answer
            if self._stop.wait(wait_s):
                raise CancelledError
            wait_s = min(LONGEST_WAIT_S, wait_s * 2)

    def _note(self, error: Exception | None) -> None:
        with self._lock:
            was_down, self._down = self._down, error is not None
        if error is not None and not was_down:
            log.warning("%s: %s; waiting for it", self._what, error)
        elif error is None and was_down:
            log.info("%s: the servers answer again", self._what)
