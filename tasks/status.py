"""Tells how a worker is: every two seconds, and at once when its state changes, from a thread that nothing else waits for."""
from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from distributed_comfy import __version__
from distributed_comfy.engine.device_use import DeviceWatch, host_use
from distributed_comfy.messages import Capability, content_hash
from distributed_comfy.planning.requirements import capability_hash
from distributed_comfy.state.status import Phase, WorkerStatus
from distributed_comfy.state.workers import to_ms

if TYPE_CHECKING:
    from tasks.runtime import WorkerRuntime

SHORTEST_INTERVAL_S = 0.25
"""Between two statuses, however often the state changes."""
_CLOCK_JUMP_MS = 1000.0
"""By less than this the time of what began does not move: an answer that took long is no other clock."""
_MISSED = 3
"""Statuses that may be missed before the last one vanishes."""


class StatusTeller:
    """Composes the status of one worker and publishes it.

    Args:
        runtime: the worker.
    """

    def __init__(self, runtime: WorkerRuntime) -> None:
        self._runtime = runtime
        self._settings = runtime.settings
        self._board = runtime.cluster.statuses
        self._watch = DeviceWatch(runtime.engine.options.device, runtime.settings.status_interval_s)
        self._wanted = threading.Event()
        self._offset_ms: float | None = None
        self._started = time.monotonic()
        self._started_by = runtime.settings.starter
        self._drained = False
        self._state: tuple[Phase, str] = ("starting", "")
        self._since = self._started
        self._lists = _Lists()

    def changed(self) -> None:
        """The state may have changed: tell it soon; from any thread."""
        self._wanted.set()

    def watch_device(self, stopped: threading.Event) -> None:
        """Ask the driver until ``stopped``; a thread of its own, because it can hang."""
        self._watch.run(stopped)

    def run(self, stopped: threading.Event, quietly: Callable[[str, Callable[[], object]], None]) -> None:
        """Publish until ``stopped``.

        Args:
            stopped: ends it.
            quietly: does something that fails while the server is away, and tries again with the next tick.
        """
        while not stopped.is_set():
            self._wanted.clear()
            quietly("status", self.publish)
            stopped.wait(SHORTEST_INTERVAL_S)
            self._wanted.wait(max(0.0, self._settings.status_interval_s - SHORTEST_INTERVAL_S))

    def publish(self) -> None:
        """Tell the status once; again at once where the answer changes it."""
        before = self._drained
        if self._offset_ms is None:  # times are of the clock that the first answer brings
            self._offset_ms = self._redis_ms() - time.monotonic() * 1000
        answer = self._board.publish(
            self.status(),
            self._runtime.incarnation,
            ttl_ms=_MISSED * to_ms(self._settings.status_interval_s),
            log_ttl_ms=to_ms(self._settings.log_ttl_s),
        )
        offset_ms = answer.now_ms - time.monotonic() * 1000
        if abs(offset_ms - self._offset_ms) > _CLOCK_JUMP_MS:
            self._offset_ms = offset_ms
        self._drained = answer.drained
        if answer.drained != before:
            self.changed()

    def status(self) -> WorkerStatus:
        """How the worker is now."""
        runtime, clock = self._runtime, self._clock
        capability, report = runtime.capability, runtime.engine.report
        self._enter(_phase(runtime, drained=self._drained))
        done, failed = runtime.activity.counts()
        self._lists.look(capability)
        return WorkerStatus(
            name=runtime.name,
            host=self._settings.host_name,
            device=runtime.engine.options.device,
            state=self._state[0],
            since_ms=clock(self._since),
            reason=self._state[1],
            items=runtime.activity.items(clock),
            items_done=done,
            items_failed=failed,
            last_error=runtime.activity.last_error(clock),
            use=self._watch.use(report, runtime.engine.memory),
            host_use=host_use(runtime.engine.pid),
            models=report.models,
            engine=runtime.engine.options.engine,
            engine_version=capability.engine_version if capability else "",
            commit=report.commit,
            packs=len(report.packs),
            capability=self._lists.capability,
            node_classes=len(capability.node_classes) if capability else 0,
            model_files=self._lists.model_files,
            model_files_hash=self._lists.model_files_hash,
            pid=runtime.pid,
            engine_pid=runtime.engine.pid or 0,
            started_ms=clock(self._started),
            started_by=self._started_by,
            package_version=__version__,
            interval_s=self._settings.status_interval_s,
        )

    def _enter(self, state: tuple[Phase, str]) -> None:
        if state[0] != self._state[0]:
            self._since = time.monotonic()
        self._state = state

    def _clock(self, at: float) -> int:
        return round(at * 1000 + (self._offset_ms or 0.0))

    def _redis_ms(self) -> float:
        answer: Any = self._runtime.cluster.client.time()
        seconds, microseconds = answer
        return float(seconds) * 1000 + float(microseconds) / 1000


class _Lists:
    """What is to be said about the long lists of a capability, worked out when there is a new one."""

    def __init__(self) -> None:
        self._of: Capability | None = None
        self.capability = self.model_files_hash = ""
        self.model_files = 0

    def look(self, capability: Capability | None) -> None:
        if capability is self._of:
            return
        self._of = capability
        folders = {name: capability.choice_lists[index] for name, index in capability.model_lists.items()} if capability else {}
        self.capability = capability_hash(capability) if capability else ""
        self.model_files = sum(map(len, folders.values()))
        self.model_files_hash = content_hash(folders) if folders else ""


def _phase(runtime: WorkerRuntime, *, drained: bool) -> tuple[Phase, str]:
    """State and reason."""
    has_items = bool(runtime.held.running())
    if runtime.stopped or runtime.draining.is_set():
        limit_s = runtime.settings.drain_timeout_s
        return "ending", f"it was told to end; what runs has up to {limit_s:g} s" if has_items else "it was told to end"
    if not runtime.wait_able(0):
        return ("down" if runtime.ever_able else "starting"), runtime.down_reason
    if drained:
        words = f"`distributed-comfy workers undrain {runtime.name}` lets it have items again"
        return ("draining", f"it finishes what it has; {words}") if has_items else ("drained", words)
    return ("busy" if has_items else "idle"), ""
