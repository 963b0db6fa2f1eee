"""Whether the cluster still lets this host in: counts how long its user has been refused without a break, and gives a verdict."""
from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from distributed_comfy.errors import InviteRefused
from distributed_comfy.settings import redact_url
from distributed_comfy.state.connection import host_of_url, is_refusal

log = logging.getLogger(__name__)


class Admission:
    """Of one process of an invited host; any other process is never judged.

    A server that does not know the user has revoked the invitation, or has just started without its users: then they come back.  So the
    first refusal is a warning, and only one that lasts is a verdict.  Silence proves nothing, neither way: the door of a cluster whose
    last guest was shut out is shut soon after.

    Args:
        redis_url: of the state server; its user says whether this host was invited.
        shown: the cluster's URL for people; empty: as the state server's.
        patience_s: how long the user must have been refused (DC_REFUSED_TTL_S).
        now_s: a clock, for tests.
    """

    def __init__(self, redis_url: str, patience_s: float, *, shown: str = "", now_s: Callable[[], float] = time.monotonic) -> None:
        self._host = host_of_url(redis_url)
        self._shown = shown or ("the cluster" if redis_url.startswith("unix:") else redact_url(redis_url).partition("?")[0])
        self._patience_s = patience_s
        self._now_s = now_s
        self._lock = threading.Lock()
        self._since: float | None = None
        self._reason = ""
        self._verdict: InviteRefused | None = None

    def accepted(self) -> None:
        """The server has just done what this process asked."""
        with self._lock:
            if self._since is not None:
                log.info("the cluster lets host %s in again", self._host)
            self._since = None

    def failed(self, error: BaseException) -> bool:
        """Something that was asked of the server failed; True where that is told already, and needs no other line in the log."""
        with self._lock:
            refused = bool(self._host) and is_refusal(error)
            if refused and self._since is None:
                self._since, self._reason = self._now_s(), str(getattr(error, "reason", error)).rstrip(".")
                log.warning(
                    "the cluster does not know the user of host %s any more (%s): its invitation was revoked or has expired, or the server "
                    "has just lost its users; trying again for %g s",
                    self._host, self._reason, self._patience_s,
                )  # fmt: skip
            return refused

    @property
    def verdict(self) -> InviteRefused | None:
        """Why this host is shut out; None while it is not, or not for certain.  Once given it stays."""
        with self._lock:
            if self._verdict is None and self._since is not None and self._now_s() - self._since >= self._patience_s:
                self._verdict = InviteRefused(url=self._shown, host=self._host, reason=self._reason)
            return self._verdict
