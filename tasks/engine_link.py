"""Keeps one engine process alive and turns its events into answers for the threads that wait for them."""
from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field

from distributed_comfy.engine.host import EngineProcess

from distributed_comfy.engine.options import EngineOptions
from distributed_comfy.engine.protocol import Described, Event, Failed, Finished, Preview, Progress, Ready, Shipping, Started
from distributed_comfy.errors import DistributedComfyError, EngineStartFailed
from distributed_comfy.messages import Capability, ItemResult, RunRequest
from tasks.held import Phase

log = logging.getLogger(__name__)

_FIRST_BACKOFF_S = 1.0
_LONGEST_BACKOFF_S = 60.0


@dataclass
class EngineLink:
    """One engine process after another; `start` keeps one running until `close`."""

    options: EngineOptions
    start_timeout_s: float
    on_capability: Callable[[Capability], None]
    """Called from a thread of this link whenever the engine has described itself."""
    on_down: Callable[[], None]
    """The engine ended; nothing can run until `on_capability` is called again."""
    on_progress: Callable[[RunRequest, Progress | Preview], None]
    """Steps and previews of an item."""
    on_phase: Callable[[str, Phase], None]
    """A claim's execution began, or its result is on the way."""
    _process: EngineProcess | None = None
    _waiting: dict[str, tuple[RunRequest, Future[ItemResult]]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _closing: threading.Event = field(default_factory=threading.Event)
    _ended: threading.Event = field(default_factory=threading.Event)

    def start(self) -> threading.Thread:
        """Keep an engine running, in a thread of its own (its children are tied to the thread's life)."""
        thread = threading.Thread(target=self._supervise, name="engine-supervisor", daemon=True)
        thread.start()
        return thread

    def run(self, request: RunRequest) -> Future[ItemResult]:
        """Queue an item in the engine; the future gives its result or raises its error."""
        future: Future[ItemResult] = Future()
        with self._lock:
            self._waiting[request.claim_id] = (request, future)
            process = self._process
        if process is None:
            self._settle(request.claim_id, error=EngineStartFailed(reason="it is restarting"))
        else:
            process.run(request)
        return future

    def interrupt(self, claim_id: str) -> None:
        """Stop the run of this claim at its next step."""
        process = self._process
        if process is not None:
            process.interrupt(claim_id)

    def describe(self) -> None:
        """Ask for the capability again; the answer comes to ``on_capability``."""
        process = self._process
        if process is not None:
            process.describe()

    def free(self) -> None:
        """Unload models."""
        process = self._process
        if process is not None:
            process.free()

    def close(self) -> None:
        """End the engine and start no other."""
        self._closing.set()
        process = self._process
        if process is not None:
            process.close()

    # -- events of the process -------------------------------------------------------------------------------------------
    def _on_event(self, event: Event) -> None:
        if isinstance(event, (Progress, Preview)):
            with self._lock:
                request, _ = self._waiting.get(event.claim_id, (None, None))
            if request is not None:
                self.on_progress(request, event)
        elif isinstance(event, Finished):
            self._settle(event.claim_id, result=event.result)
        elif isinstance(event, Failed):
            self._settle(event.claim_id, error=event.error)
        elif isinstance(event, Started):
            self.on_phase(event.claim_id, "started")
        elif isinstance(event, Shipping):
            self.on_phase(event.claim_id, "shipping")
        elif isinstance(event, (Ready, Described)):
            self.on_capability(event.capability)

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
            self._run_one()
            if self._closing.is_set():
                return
            self.on_down()
            if time.monotonic() - began > _LONGEST_BACKOFF_S:
                backoff_s = _FIRST_BACKOFF_S
            if began + self.start_timeout_s < time.monotonic() or backoff_s > _FIRST_BACKOFF_S:
                self._closing.wait(backoff_s)
            backoff_s = min(backoff_s * 2, _LONGEST_BACKOFF_S)

    def _run_one(self) -> None:
        self._ended.clear()
        process = EngineProcess(self.options, self._on_event)
        try:
            process.start()
            process.wait_ready(self.start_timeout_s)
        except EngineStartFailed as error:
            log.error("%s", error)
            process.close()
            return
        with self._lock:
            self._process = process
        self._ended.wait()
        with self._lock:
            self._process = None

