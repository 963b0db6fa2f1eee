"""One worker under supervision: whether it should run, the process that does, and what is done when that ends."""
from __future__ import annotations

import logging
import time
from collections.abc import Callable

from distributed_comfy.agent.back_off import BackOff
from distributed_comfy.agent.processes import WorkerProcess
from distributed_comfy.state.records import WorkerPhase, WorkerState

log = logging.getLogger(__name__)

_AFTER_DRAIN_S = 30.0
"""What a worker may take, after the time for its item, to give that back and to end its engine; then it is killed."""
_SECOND_REQUEST_S = 0.5
_SERVERS_GONE_S = 2.0
"""What it may take where its servers are gone for good."""
_KILL = "signal 9"
_KILLED = (
    "it was killed from outside with {how}: by a user, or by the system for lack of main memory; it starts again by itself, and where "
    "nobody has killed it, close other programs on its computer or run fewer workers there"
)

Launch = Callable[[], WorkerProcess]
"""Starts the worker's process; raises `OSError`."""
LastWords = Callable[[], str]
"""What the worker's log says of its end, of this life of it."""


class SupervisedWorker:
    """Changed by `start`, `stop`, `restart`, and by `tick`, which must be called several times a second; not safe between threads.

    Args:
        name: of the worker.
        launch: see `Launch`.
        last_words: see `LastWords`.
        drain_timeout_s: how long it may finish its item when it is asked to end.
    """

    def __init__(self, name: str, launch: Launch, last_words: LastWords, drain_timeout_s: float) -> None:
        self.name = name
        self.process: WorkerProcess | None = None
        self.restarts = 0
        self.reason = ""
        """Why it is not running, or was started again."""
        self._launch = launch
        self._last_words = last_words
        self._drain_timeout_s = drain_timeout_s
        self._back_off = BackOff()
        self._wanted = False
        self._failed = False
        self._start_at = 0.0
        self._started_at = 0.0
        self._kill_at: float | None = None
        self._ask_again_at: float | None = None
        self._seen: WorkerState | None = None

    # -- orders ----------------------------------------------------------------------------------------------------------
    def start(self) -> None:
        """Run from now on; at once, whatever it waited for."""
        self._wanted, self._failed, self._start_at = True, False, 0.0
        self._back_off.reset()
        if self.process is None:
            self.reason = ""

    def adopt(self, process: WorkerProcess) -> None:
        """Run from now on, and this is the process."""
        self.start()
        self.process, self._started_at = process, time.monotonic()

    def stop(self, *, at_once: bool = False, servers_gone: bool = False) -> None:
        """Finish the item (or give it back at once, if the servers it came from are still there), end, and stay so."""
        self._wanted, self._failed, self.reason = False, False, ""
        self._end(at_once)
        if servers_gone and self._kill_at is not None:
            self._kill_at = min(self._kill_at, time.monotonic() + _SERVERS_GONE_S)

    def fail(self, reason: str) -> None:
        """It cannot run as it is configured."""
        self._wanted, self._failed, self.reason = True, True, reason

    def restart(self, *, at_once: bool = False) -> None:
        """End as with `stop`, then start."""
        self._end(at_once)
        self.start()

    def _end(self, at_once: bool) -> None:
        if self.process is None:
            return
        now = time.monotonic()
        if self._kill_at is None:
            self.process.ask_to_end()
            log.info("worker %s: stopping%s", self.name, "" if at_once else f"; up to {self._drain_timeout_s:g} s for its item")
        kill_at = now + (0.0 if at_once else self._drain_timeout_s) + _AFTER_DRAIN_S
        self._kill_at = kill_at if self._kill_at is None else min(self._kill_at, kill_at)
        if at_once:
            self._ask_again_at = now + _SECOND_REQUEST_S

    # -- state -----------------------------------------------------------------------------------------------------------
    @property
    def wanted(self) -> bool:
        """Whether it is to run, also while it waits for its next start; not if it cannot run as it is configured."""
        return self._wanted and not self._failed

    @property
    def stopping(self) -> bool:
        """Whether it was asked to end and has not yet."""
        return self.process is not None and self._kill_at is not None

    def phase(self, *, enabled: bool) -> WorkerPhase:
        """What it is doing."""
        if self.process is not None:
            if self.stopping:
                return "stopping"
            if self._seen is None:
                return "starting"
            return "draining" if self._seen.drained else "running"
        if self._failed:
            return "failed"
        if self._wanted:
            return "backing-off" if self._start_at > time.monotonic() else "starting"
        return "stopped" if enabled else "disabled"

    @property
    def next_start_s(self) -> float:
        """Seconds until it is started again; 0 where it does not wait for that."""
        waits = self.process is None and self._wanted and not self._failed
        return max(0.0, self._start_at - time.monotonic()) if waits else 0.0

    def see(self, state: WorkerState | None) -> None:
        """What the table says of the worker; of another process of that name it says nothing."""
        live = state is not None and state.state != "lost" and self.process is not None and state.facts.pid == self.process.pid
        if live and self._seen is None:
            self.reason = ""  # of the life before
            log.info("worker %s: running", self.name)
        self._seen = state if live else None

    # -- time ------------------------------------------------------------------------------------------------------------
    def tick(self) -> None:
        """Look at the process; start it, or end it, where its time has come."""
        now = time.monotonic()
        if self.process is None:
            if self._wanted and not self._failed and now >= self._start_at:
                self._begin(now)
            return
        how = self.process.ended()
        if how is not None:
            self._ended(how, now)
        elif self._kill_at is not None and now >= self._kill_at:
            log.warning("worker %s does not end; it is killed", self.name)
            self.process.kill()
        elif self._ask_again_at is not None and now >= self._ask_again_at:
            self._ask_again_at = None
            self.process.ask_to_end()

    def _begin(self, now: float) -> None:
        self._seen = None
        try:
            self.process = self._launch()
        except OSError as error:
            self._wait(f"it could not be started: {error}", 0.0, now)
            return
        self._started_at = now

    def _ended(self, how: str, now: float) -> None:
        assert self.process is not None
        asked, hopeless = self._kill_at is not None, self.process.hopeless
        self.process = self._kill_at = self._ask_again_at = self._seen = None
        if asked:
            log.info("worker %s: %s", self.name, "starts again" if self._wanted and not self._failed else "stopped")
            return
        words = self._last_words()
        if hopeless:
            self._failed, self.reason = True, words or how
            log.error("worker %s: failed: %s", self.name, self.reason)
        elif self._wanted:
            ended = _KILLED.format(how=how) if how.startswith(_KILL) else f"it ended with {how}" + (f": {words}" if words else "")
            self._wait(ended, now - self._started_at, now)

    def _wait(self, reason: str, ran_s: float, now: float) -> None:
        wait_s = self._back_off.after(ran_s)
        self._start_at = now + wait_s
        self.restarts += 1
        self.reason = reason
        log.warning("worker %s: backing off, next start in %g s: %s", self.name, wait_s, reason)
