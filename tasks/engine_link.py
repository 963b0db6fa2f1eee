"""Keeps one engine process alive and turns its events into answers for the threads that wait for them."""
from __future__ import annotations

import logging
import threading
import time
from concurrent.futures import Future
from typing import Protocol

from distributed_comfy.engine.host import Ended, EngineProcess, HostEvent
from distributed_comfy.engine.options import EngineOptions
from distributed_comfy.engine.protocol import Described, Failed, Finished, Preview, Progress, Said, Shipping, Started, Waits
from distributed_comfy.errors import ComfyUIUnreachable, DistributedComfyError, EngineDied, EngineGaveUp, ItemInterrupted
from distributed_comfy.log_lines import complaint
from distributed_comfy.messages import Capability, ItemResult, RunRequest, item_id
from distributed_comfy.state.records import DeviceMemory
from distributed_comfy.state.status import EngineReport
from tasks.activity import in_short
from tasks.held import Phase

log = logging.getLogger(__name__)

_FIRST_BACKOFF_S = 1.0
_LONGEST_BACKOFF_S = 60.0


class EngineListener(Protocol):
    """Who is told about an engine."""

    def on_capability(self, capability: Capability) -> None:
        """The engine is ready, or has described itself again."""

    def on_down(self, reason: str) -> None:
        """The engine has ended, or did not start; nothing can run until `on_capability` is called again.

        Args:
            reason: in words, with what happens next.
        """

    def on_died(self, error: EngineDied) -> None:
        """The engine has ended by itself, with an item or without."""

    def on_start_failed(self, error: DistributedComfyError) -> None:
        """The engine did not start; it is tried again."""

    def on_progress(self, request: RunRequest, event: Progress | Preview | Said | Waits) -> None:
        """A step or a preview of an item, what ComfyUI says about it, or why its result waits."""

    def on_phase(self, claim_id: str, phase: Phase) -> None:
        """A claim's execution began, or its result is on the way."""


class EngineLink:
    """One engine process after another: `start` keeps one running until `close`."""

    def __init__(self, options: EngineOptions, start_timeout_s: float, listener: EngineListener) -> None:
        """
        Args:
            options: for every process.
            start_timeout_s: longest start, models not included.
            listener: is told what happens; from threads of this link, so it must not block for long.
        """
        self.options = options
        self.start_timeout_s = start_timeout_s
        self._listener = listener
        self._process = EngineProcess(options, self._on_event)
        self._waiting: dict[str, tuple[RunRequest, Future[ItemResult]]] = {}
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._ended = threading.Event()
        self._told = ""
        self._last_end = ""

    @property
    def pid(self) -> int | None:
        """Of the engine process; None while there is none."""
        return self._process.pid if self._process.alive else None

    @property
    def report(self) -> EngineReport:
        """What the engine last told about itself."""
        return self._process.report

    @property
    def memory(self) -> DeviceMemory | None:
        """Of the engine's device; None where that is not known."""
        return self._process.memory

    def start(self) -> None:
        """Keep an engine running, from a thread of this link."""
        threading.Thread(target=self._supervise, name="engine-supervisor", daemon=True).start()

    def run(self, request: RunRequest) -> Future[ItemResult]:
        """Queue an item in the engine; the future gives its result or raises its error.

        An item that finds no engine was not executed, so its error is `ItemInterrupted`, which uses up no attempt.
        """
        future: Future[ItemResult] = Future()
        with self._lock:
            self._waiting[request.claim_id] = (request, future)
        try:
            self._process.run(request)
        except EngineDied:
            self._settle(request.claim_id, error=ItemInterrupted(item_id=item_id(request.job_id, request.index)))
        return future

    def item_of(self, claim_id: str) -> str:
        """Id of the item that the engine has under this claim; empty where it has none."""
        with self._lock:
            request, _ = self._waiting.get(claim_id, (None, None))
        return item_id(request.job_id, request.index) if request else ""

    def interrupt(self, claim_id: str) -> None:
        """Stop the run of this claim at its next step."""
        self._process.interrupt(claim_id)

    def describe(self) -> None:
        """Ask for the capability again; the answer comes to ``on_capability``."""
        self._process.describe()

    def free(self) -> None:
        """Unload models."""
        self._process.free()

    def close(self) -> None:
        """End the engine and start no other."""
        self._closing.set()
        self._process.close()

    # -- events of the process -------------------------------------------------------------------------------------------
    def _on_event(self, event: HostEvent) -> None:
        if isinstance(event, (Progress, Preview, Said, Waits)):
            with self._lock:
                request, _ = self._waiting.get(event.claim_id, (None, None))
            if request is not None:
                self._listener.on_progress(request, event)
        elif isinstance(event, Finished):
            self._settle(event.claim_id, result=event.result)
        elif isinstance(event, Failed):
            self._settle(event.claim_id, error=event.error)
        elif isinstance(event, Started):
            self._listener.on_phase(event.claim_id, "started")
        elif isinstance(event, Shipping):
            self._listener.on_phase(event.claim_id, "shipping")
        elif isinstance(event, Described):
            self._listener.on_capability(event.capability)
        elif isinstance(event, Ended):
            self._last_end = f"the engine ended with {event.status}"
            if not event.wanted:
                self._listener.on_died(EngineDied(status=event.status, log_tail=event.log_tail))
            self._ended.set()

    def _settle(self, claim_id: str, result: ItemResult | None = None, error: DistributedComfyError | None = None) -> None:
        with self._lock:
            _, future = self._waiting.pop(claim_id, (None, None))
        if future is None:
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result or ItemResult())

    def _supervise(self) -> None:
        backoff_s = _FIRST_BACKOFF_S
        while not self._closing.is_set():
            began = time.monotonic()
            error = self._run_one()
            if self._closing.is_set():
                return
            if isinstance(error, ComfyUIUnreachable):  # the process waited for it already, and did nothing else
                self._listener.on_down(self._last_end)
                continue
            lived_s = time.monotonic() - began
            backoff_s = _FIRST_BACKOFF_S if lived_s > _LONGEST_BACKOFF_S else min(backoff_s * 2, _LONGEST_BACKOFF_S)
            wait_s = backoff_s - _FIRST_BACKOFF_S  # the first restart is immediate
            self._listener.on_down(f"{self._last_end}; it starts again" + (f" after {wait_s:.0f} s" if wait_s else ""))
            self._closing.wait(wait_s)

    def _run_one(self) -> DistributedComfyError | None:
        """One engine from start to end; the error where it did not start."""
        self._ended.clear()
        try:
            capability = self._process.start(timeout_s=self.start_timeout_s)
        except DistributedComfyError as error:
            if self._closing.is_set():  # it was ended while it started
                return error
            self._tell(error)
            self._last_end = _why_not(error)
            self._listener.on_start_failed(error)
            return error
        self._told = ""
        self._listener.on_capability(capability)
        self._ended.wait()
        return None

    def _tell(self, error: DistributedComfyError) -> None:
        """Say why it does not start; of a ComfyUI that is waited for, once."""
        if not isinstance(error, ComfyUIUnreachable):
            log.error("worker %s: %s", self.options.worker, error)
        elif self._told != str(error):
            log.warning("worker %s waits for its ComfyUI: %s", self.options.worker, error)
            self._told = str(error)


def _why_not(error: DistributedComfyError) -> str:
    """Why it did not start, for a card: of a process that ended by itself also what its log complains of, but not all that it has."""
    if not isinstance(error, EngineGaveUp):
        return in_short(str(error))
    what, last = str(error.fields["what"]), complaint(str(error.fields["log_tail"]).splitlines())
    return in_short(f"the engine did not start: {what}" + (f": {last}" if last and "signal" not in what else ""))
