"""Frees an embedded server that one script keeps from everybody.

No script of ours runs for seconds, and others do not pass the door or the relay; but whoever has an owner's or a master's password can send
one, by mistake as well.  Redis ends a script on request while that has changed nothing, and else only with itself.  Standard library only.
"""
from __future__ import annotations

import logging
import time
from collections.abc import Callable

from distributed_comfy.state.server_process import ServerProcess

log = logging.getLogger(__name__)

LOOK_INTERVAL_S = 2.0
PATIENCE_S = 5.0
"""How long a server may be busy, from when it first says so, until its script is ended."""
LAST_PATIENCE_S = 30.0
"""The same until the server itself is."""


class StuckServerWatch:
    """Looks at one server now and then.

    Args:
        server: running.
        name: for the log.
        given_up: see `ServerProcess.start`.
        patience_s: see `PATIENCE_S`.
        last_patience_s: see `LAST_PATIENCE_S`.
    """

    def __init__(
        self,
        server: ServerProcess,
        name: str,
        given_up: Callable[[], bool],
        *,
        patience_s: float = PATIENCE_S,
        last_patience_s: float = LAST_PATIENCE_S,
    ) -> None:
        self._server = server
        self._name = name
        self._given_up = given_up
        self._patience_s = patience_s
        self._last_patience_s = last_patience_s
        self._stuck_since_s: float | None = None

    def look(self) -> None:
        """Free the server if it has been stuck for too long.

        Raises:
            ServerStartFailed: it was ended and does not start again.
        """
        if not self._server.is_stuck():
            self._stuck_since_s = None
            return
        now = time.monotonic()
        if self._stuck_since_s is None:
            self._stuck_since_s = now
        stuck_s = now - self._stuck_since_s
        if stuck_s >= self._last_patience_s:
            log.error("the %s server is kept by a script that cannot be ended; it is killed and starts again from its disk", self._name)
            self._server.restart(self._given_up)
            self._stuck_since_s = None
        elif stuck_s >= self._patience_s:
            log.warning("the %s server is kept by a script, which is ended", self._name)
            self._server.end_script()
