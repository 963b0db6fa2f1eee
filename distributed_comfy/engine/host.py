"""The consumer's side of an engine process: starts it, hands it items, and notices when it dies or stalls."""
from __future__ import annotations

import logging
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Union

from distributed_comfy.engine.boot import EXIT_CANNOT_IMPORT
from distributed_comfy.engine.launch import kill_all, spawn, status_in_words
from distributed_comfy.engine.logfile import EngineLog
from distributed_comfy.engine.options import EngineOptions
from distributed_comfy.engine.pipe import MessageReader, MessageWriter
from distributed_comfy.engine.protocol import (
    Beat,
    Close,
    Describe,
    Described,
    Failed,
    Finished,
    Free,
    Init,
    Interrupt,
    Order,
    Preview,
    Progress,
    Ready,
    Reported,
    Run,
    Said,
    Shipping,
    Started,
    StartFailed,
    Waits,
    from_message,
    to_message,
)
from distributed_comfy.errors import (
    DistributedComfyError,
    EngineDied,
    EngineGaveUp,
    EngineStalled,
    EngineStartFailed,
    PipeError,
    PipeMessageTooLarge,
    SettingInvalid,
)
from distributed_comfy.messages import Capability, RunRequest
from distributed_comfy.state.records import DeviceMemory
from distributed_comfy.state.status import EngineReport

log = logging.getLogger(__name__)

START_TIMEOUT_S = 600.0
"""A tree with many node packs takes minutes to import."""

CLOSE_TIMEOUT_S = 10.0
_WATCH_INTERVAL_S = 0.2
_LAST_WORDS_S = 2.0  # how long a dead process' pipe may still be read before what keeps it open is ended


@dataclass(frozen=True)
class Ended:
    """The engine process is gone; comes last, after a `Failed` for every claim it had."""

    status: str
    """In words: ``exit status 1``, ``signal 9 (SIGKILL)``."""
    log_tail: str
    wanted: bool
    """True after `EngineProcess.close` or `EngineProcess.kill`."""


HostEvent = Union[Started, Progress, Preview, Said, Shipping, Waits, Finished, Failed, Described, Ended]
"""What a consumer hears from its engine."""


class EngineProcess:
    """One engine process after the other; `start` again after an `Ended` gives a new one.

    Events come from a thread of this object, in the order in which things happened; their receiver must not block for long and must
    not raise.  For each claim exactly one `Finished` or `Failed` comes.
    """

    def __init__(self, options: EngineOptions, on_event: Callable[[HostEvent], None]) -> None:
        """Args:
        options: of every process that is started here.
        on_event: takes the events.
        """
        self.options = options
        self._on_event = on_event
        self._child: _Child | None = None

    @property
    def alive(self) -> bool:
        """Whether a process is there that can take items."""
        return self._child is not None and self._child.ready and not self._child.gone.is_set()

    @property
    def pid(self) -> int | None:
        """Process id of the current or last process."""
        return self._child.pid if self._child is not None else None

    @property
    def memory(self) -> DeviceMemory | None:
        """What the process last said about its device; None where it cannot tell, or is gone."""
        return self._child.memory if self._child is not None and self.alive else None

    @property
    def report(self) -> EngineReport:
        """What the process last told about itself; an empty one where it is gone or cannot tell."""
        return self._child.report if self._child is not None and not self._child.gone.is_set() else EngineReport()

    def start(self, *, timeout_s: float = START_TIMEOUT_S) -> Capability:
        """Start a process and wait until it is ready.

        Raises:
            EngineStartFailed: it refused, or was not ready in time.
            EngineGaveUp: it ended; with its own words.
        """
        if self._child is not None and not self._child.gone.is_set():
            raise EngineStartFailed(reason=f"process {self._child.pid} is running already")
        self._child = _Child(self.options, self._on_event)
        return self._child.start(timeout_s)

    def run(self, request: RunRequest) -> None:
        """Queue an item; never waits.

        Raises:
            EngineDied: there is no process; otherwise the claim's end comes as an event.
            PipeMessageTooLarge: the prompt cannot be sent; no event comes.
        """
        self._there().run(request)

    def interrupt(self, claim_id: str) -> None:
        """End a claim, whether it waits, runs or ships; its `Failed` (or `Finished`, if that was faster) follows."""
        self._order(Interrupt(claim_id))

    def free(self) -> None:
        """Let the engine give its device memory back as soon as nothing runs."""
        self._order(Free())

    def describe(self) -> None:
        """Let the engine look at its models again; a `Described` follows."""
        self._order(Describe())

    def close(self, *, timeout_s: float = CLOSE_TIMEOUT_S) -> None:
        """Interrupt everything and end the process; it is killed after ``timeout_s``.  Returns when it is gone."""
        if self._child is not None:
            self._child.close(timeout_s)

    def kill(self) -> None:
        """End the process at once.  Returns when it is gone."""
        if self._child is not None:
            self._child.close(0.0)

    def _order(self, order: Order) -> None:
        if self._child is not None:
            self._child.order(order)

    def _there(self) -> _Child:
        if self._child is None:
            raise EngineDied(status="no start", log_tail="")
        return self._child


class _Child:
    """One process: a thread that starts it and reads its events, a thread that watches it."""

    def __init__(self, options: EngineOptions, on_event: Callable[[HostEvent], None]) -> None:
        self._options = options
        self._on_event = on_event
        self._log = EngineLog(options.log_file)
        self._lock = threading.Lock()
        self._claims: dict[str, None] = {}
        self._process: subprocess.Popen[bytes] | None = None
        self._writer: MessageWriter | None = None
        self._answer: Capability | DistributedComfyError | None = None
        self._answered = threading.Event()
        self._last_sign = time.monotonic()
        self._works = False
        self._stalled_s = 0.0
        self._wanted = False
        self._over = False
        # The thread that starts the process must outlive it, see `launch.spawn`.
        self._thread = threading.Thread(target=self._live, name=f"engine {options.worker}", daemon=True)
        self.memory: DeviceMemory | None = None
        self.report = EngineReport()
        self.gone = threading.Event()
        """Set when the process has ended and its claims were answered."""

    @property
    def ready(self) -> bool:
        """Whether it answered with its capability."""
        return isinstance(self._answer, Capability)

    @property
    def pid(self) -> int | None:
        """None before it was started."""
        return self._process.pid if self._process is not None else None

    def start(self, timeout_s: float) -> Capability:
        self._thread.start()
        if not self._answered.wait(timeout_s):
            self.close(0.0)
            raise EngineStartFailed(reason=f"not ready after {timeout_s:g} s; its last lines: {self._log.tail()}")
        if isinstance(self._answer, Capability):
            return self._answer
        self.gone.wait(CLOSE_TIMEOUT_S)
        assert self._answer is not None
        raise self._answer

    def run(self, request: RunRequest) -> None:
        with self._lock:
            if self._over or not self.ready:
                raise EngineDied(status="no start" if self._process is None else "an end before this item", log_tail=self._log.tail())
            self._claims[request.claim_id] = None
            self._last_sign = max(self._last_sign, time.monotonic())
        try:
            self.order(Run(request))
        except PipeMessageTooLarge:
            with self._lock:
                self._claims.pop(request.claim_id, None)
            raise

    def order(self, order: Order) -> None:
        """Send an order; one that a dying process does not take any more is answered by its end."""
        writer = self._writer
        if writer is None:
            return
        try:
            writer.write(to_message(order))
        except (OSError, ValueError) as error:  # ValueError: the pipe was closed
            log.debug("worker %s: an order was not taken: %s", self._options.worker, error)

    def close(self, timeout_s: float) -> None:
        self._wanted = True
        if not self.ready:
            timeout_s = 0.0  # it hears no order before it has imported everything, and has nothing that could be lost
        if timeout_s > 0:
            self.order(Close())
        if not self.gone.wait(timeout_s) and self._process is not None:
            kill_all(self._process)
        if threading.current_thread() is not self._thread:
            self._thread.join(CLOSE_TIMEOUT_S)

    # -- the thread that lives as long as the process -----------------------------------------------------------------------
    def _live(self) -> None:
        try:
            process = self._process = spawn(self._options)
        except (OSError, SettingInvalid) as error:
            self._settle(EngineStartFailed(reason=f"{self._options.python} cannot be started: {error}"))
            self.gone.set()
            return
        if self._wanted:  # `close` came while there was nothing to kill yet
            kill_all(process)
        assert process.stdin is not None and process.stdout is not None
        self._writer = MessageWriter(process.stdin)
        threading.Thread(target=self._watch, args=(process,), name=f"engine watch {self._options.worker}", daemon=True).start()
        self.order(Init(self._options))
        try:
            self._read(MessageReader(process.stdout))
        finally:
            kill_all(process)  # a closed or spoilt pipe is of no use to either side
            self._bury(process)

    def _read(self, reader: MessageReader) -> None:
        try:
            while (message := reader.read()) is not None:
                self._hear(from_message(message))
        except PipeError as error:
            log.error("worker %s: the engine sends nonsense and is ended: %s", self._options.worker, error)

    def _hear(self, event: Any) -> None:
        if isinstance(event, Beat):
            self._last_sign, self._works = time.monotonic() - event.quiet_s, event.quiet_s > 0
            self.memory = DeviceMemory(event.free_bytes, event.total_bytes) if event.total_bytes else None
        elif isinstance(event, Reported):
            self.report = event.report
        elif isinstance(event, Ready):
            self._settle(event.capability)
        elif isinstance(event, StartFailed):
            error = event.error
            if isinstance(error, EngineGaveUp):  # it cannot know what of its log is its own
                error = EngineGaveUp(**{**error.fields, "log_tail": self._log.last_words()})
            self._settle(error)
        else:
            if isinstance(event, (Finished, Failed)):
                with self._lock:
                    self._claims.pop(event.claim_id, None)
            self._on_event(event)

    def _settle(self, answer: Capability | DistributedComfyError) -> None:
        if self._answer is None:
            self._answer = answer
        self._answered.set()

    def _watch(self, process: subprocess.Popen[bytes]) -> None:
        """Kill it when its work stalls, be it without a claim; when it is dead, end what a node may have left holding the pipe."""
        while process.poll() is None:
            if self.gone.wait(_WATCH_INTERVAL_S):
                return
            quiet_s = time.monotonic() - self._last_sign
            if (self._claims or self._works) and quiet_s > self._options.stall_timeout_s:
                log.error("worker %s: no sign of life for %.0f s, ending the engine", self._options.worker, quiet_s)
                self._stalled_s = quiet_s
                kill_all(process)
                break
        if not self.gone.wait(_LAST_WORDS_S):
            kill_all(process)

    def _bury(self, process: subprocess.Popen[bytes]) -> None:
        """Answer every claim and say that it is over."""
        status = status_in_words(process.wait())
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                stream.close()
        tail = self._log.tail()
        start_failed: DistributedComfyError = EngineStartFailed(reason=tail.rpartition("\n")[2])
        if process.returncode != EXIT_CANNOT_IMPORT:
            start_failed = EngineGaveUp(what=f"it ended with {status}", log_file=str(self._log.path), log_tail=self._log.last_words())
        with self._lock:
            claims, self._claims, self._over = list(self._claims), {}, True
        died: DistributedComfyError = EngineDied(status=status, log_tail=tail)
        if self._stalled_s:
            died = EngineStalled(seconds=round(self._stalled_s))
        for claim_id in claims:
            self._on_event(Failed(claim_id, died))
        self.gone.set()
        if self.ready:
            log.log(logging.INFO if self._wanted else logging.ERROR, "worker %s: the engine ended with %s", self._options.worker, status)
            self._on_event(Ended(status, tail, self._wanted))
        self._settle(start_failed)
