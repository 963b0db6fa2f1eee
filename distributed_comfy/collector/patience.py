"""Waiting out a server that does not answer, in all threads of a collector together."""
from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError
from typing import TypeVar

from distributed_comfy.errors import BlobsAway, BlobStoreFull, ClusterUnavailable, ConnectionLost, DistributedComfyError

log = logging.getLogger(__name__)
T = TypeVar("T")

FIRST_WAIT_S = 0.05
LONGEST_WAIT_S = 2.0


class Patience:
    """Calls a server again and again while it cannot be reached, and says so once per outage.

    Args:
        what: for the log, such as ``job 3f9a12bc77d0``.
        stop: set when nobody waits for the result any more.
        limit_s: how long a blob server may be away in one go; None: for ever.  One that is full is not away.
    """

    def __init__(self, what: str, stop: threading.Event, limit_s: float | None = None) -> None:
        self._what = what
        self._stop = stop
        self._limit_s = limit_s
        self._down = False
        self._away_since: float | None = None
        """By the monotonic clock; None while it answers."""
        self._lock = threading.Lock()

    def call(self, ask: Callable[..., T], *arguments: object) -> T:
        """``ask(*arguments)``, which must be idempotent, as soon as its server answers.

        Raises:
            CancelledError: ``stop`` was set first.
            BlobsAway: it has not answered for longer than the limit.
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
            if error is None or isinstance(error, BlobStoreFull):
                self._away_since = None
            elif self._away_since is None:
                self._away_since = time.monotonic()
            away_s = time.monotonic() - self._away_since if self._away_since is not None else 0.0
        if error is not None and not was_down:
            log.warning("%s: %s; waiting for it", self._what, error)
        elif error is None and was_down:
            log.info("%s: the servers answer again", self._what)
        if self._limit_s is not None and away_s >= self._limit_s:
            raise BlobsAway(seconds=round(away_s), reason=_in_short(error))


def _in_short(error: Exception | None) -> str:
    """Who does not answer and why, without the remedy."""
    fields = error.fields if isinstance(error, DistributedComfyError) else {}
    return ": ".join(str(fields[name]) for name in ("target", "url", "reason") if name in fields).rstrip(".") or str(error)
