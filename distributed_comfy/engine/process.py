"""The engine process: takes orders from its pipe, executes one item at a time in the main thread, ships results in another.

Threads: *main* executes (torch and ComfyUI want that), *orders* reads the pipe and never waits for anything else, *shipping* encodes
and stores, *beat* tells that the process lives and for how long the work has been quiet.  When the pipe closes, the consumer is gone
and the process ends at once, whatever it does, so that no GPU stays taken.
"""
from __future__ import annotations

import ctypes
import importlib
import logging
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from types import FrameType
from typing import Any, NoReturn

from distributed_comfy.engine.base import Engine, Reporting
from distributed_comfy.engine.claims import ClaimBook, LifeSign, Stage
from distributed_comfy.engine.context import GraphContext
from distributed_comfy.engine.device_memory import device_identity
from distributed_comfy.engine.folders import WorkFolders, discard_outgoing
from distributed_comfy.engine.inputs import place_inputs
from distributed_comfy.engine.options import EngineOptions
from distributed_comfy.engine.pipe import MessageReader, MessageWriter
from distributed_comfy.engine.protocol import (
    Beat,
    Close,
    Describe,
    Described,
    Event,
    Failed,
    Free,
    Interrupt,
    Ready,
    Reported,
    Run,
    Shipping,
    Started,
    StartFailed,
    from_message,
)
from distributed_comfy.engine.reports import ClaimSink, Outbox
from distributed_comfy.engine.shipping import Harbour, Shipment, Shipper
from distributed_comfy.errors import DistributedComfyError, EngineStartFailed, ItemInterrupted, PipeError
from distributed_comfy.log_lines import capture_prints, make_formatter, subject
from distributed_comfy.messages import Capability, RunRequest, item_id
from distributed_comfy.state.connection import connect
from distributed_comfy.state.status import EngineReport
from distributed_comfy.transport.files import InputCache
from distributed_comfy.transport.near_blobs import NearBlobStore, sweep_regularly
from distributed_comfy.transport.redis_blobs import RedisBlobStore
from distributed_comfy.transport.shared_memory import open_shared_memory

log = logging.getLogger(__name__)

ENGINES = {
    "attach": "distributed_comfy.engine.attach",
    "builtin": "distributed_comfy.engine.builtin",
    "comfyui": "distributed_comfy.engine.comfyui",
}
"""Engine -> module with its ``create_engine``."""

_SWEEP_S = 30.0
"""How long shared memory may hold what a killed collector left."""

EXIT_CONSUMER_GONE = 0
EXIT_START_FAILED = 3
EXIT_THREAD_DIED = 70
EXIT_PIPE_BROKEN = 71


def main(pipe_in: int, pipe_out: int) -> None:
    """Run an engine until its consumer closes it or is gone.

    Args:
        pipe_in: descriptor on which orders come, the first one an `Init`.
        pipe_out: descriptor for events.
    """
    threading.excepthook = _end_with_thread
    _die_with_consumer()
    reader = MessageReader(os.fdopen(pipe_in, "rb"))
    outbox = Outbox(MessageWriter(os.fdopen(pipe_out, "wb", buffering=0)))
    message = reader.read()
    if message is None:
        _exit(EXIT_CONSUMER_GONE)
    options: EngineOptions = from_message(message).options
    _set_up_logging(options)
    status = EngineChild(options, reader, outbox.send).serve()
    outbox.close()
    _exit(status)


class EngineChild:
    """All that lives in one engine process."""

    def __init__(self, options: EngineOptions, reader: MessageReader, send: Callable[[Event], None]) -> None:
        """Args:
        options: what to be.
        reader: orders.
        send: takes events, from any thread.
        """
        self._options = options
        self._reader = reader
        self._send = send
        self._claims = ClaimBook()
        self._executing = LifeSign()
        self._cache = InputCache(options.cache_folder)
        self._folders = WorkFolders(options.folder)
        self._todo: queue.SimpleQueue[RunRequest | Free | Close] = queue.SimpleQueue()
        self._engine: Engine | None = None
        self._engine_there = threading.Event()

    def serve(self) -> int:
        """Start the engine and execute items until `Close`; called in the main thread.

        Returns:
            The process's exit status.
        """
        try:
            blobs = open_blobs(self._options)
        except DistributedComfyError as error:
            self._send(StartFailed(error))
            return EXIT_START_FAILED
        harbour = Harbour(blobs, self._options, self._claims, self._send)
        for work, name in ((self._take_orders, "orders"), (lambda: self._beat(harbour), "beat")):
            threading.Thread(target=work, name=name, daemon=True).start()
        context = GraphContext(blobs, feed_timeout_s=self._options.feed_timeout_s, on_wait=self._executing.touch)
        self._folders.create()
        try:
            engine = self._engine = _create_engine(self._options, context)
            capability = engine.describe()
        except DistributedComfyError as error:
            self._send(StartFailed(error))
            return EXIT_START_FAILED
        self._send(Reported(report_of(engine)))
        self._engine_there.set()
        self._send(Ready(capability))
        log.info("engine %s of worker %s is ready on %s", engine.name, self._options.worker, capability.device_class)
        self._work(engine, Shipper(harbour), capability)
        engine.close()
        return 0

    def _work(self, engine: Engine, shipper: Shipper, capability: Capability) -> None:
        while not isinstance(order := self._todo.get(), Close):
            if isinstance(order, Free):
                self._free(engine)
            elif self._claims.advance(order.claim_id, Stage.RUNNING):
                with subject(order.job_id, order.index):
                    self._execute(engine, order, lambda shipment: shipper.ship(shipment), capability)
        shipper.close()

    def _free(self, engine: Engine) -> None:
        """A device that does not answer must not keep the next item waiting without limit."""
        self._executing.touch()
        try:
            engine.free()
        finally:
            self._executing.rest()

    def _execute(self, engine: Engine, request: RunRequest, ship: Callable[[Shipment], None], capability: Capability) -> None:
        """One item; an error that is none of ours ends the process, which the consumer reports with the log."""
        self._executing.touch()
        _record_execution(self._options, request)
        self._send(Started(request.claim_id))
        log.info("item %s begins (claim %s)", item_id(request.job_id, request.index), request.claim_id)
        began = time.monotonic()
        try:
            placed = replace(request, prompt=place_inputs(request, self._cache, self._folders.input))
            outcome = engine.run(placed, ClaimSink(request.claim_id, self._send, self._executing.touch))
            seconds = time.monotonic() - began
            if not self._claims.advance(request.claim_id, Stage.SHIPPING):  # interrupted after the engine's last look
                raise ItemInterrupted(item_id=item_id(request.job_id, request.index))
        except DistributedComfyError as error:
            log.info("item %s ended without a result: %s", item_id(request.job_id, request.index), error)
            self._claims.end(request.claim_id)
            discard_outgoing(self._options.folder, request.claim_id)
            self._send(Failed(request.claim_id, error))
        else:
            self._send(Shipping(request.claim_id, seconds))
            ship(Shipment(request, outcome, seconds, capability))
        finally:
            self._executing.rest()

    # -- orders, in their own thread ------------------------------------------------------------------------------------
    def _take_orders(self) -> None:
        try:
            while (message := self._reader.read()) is not None:
                self._take(from_message(message))
        except PipeError as error:
            log.error("the consumer sends nonsense: %s", error)
            _exit(EXIT_PIPE_BROKEN)
        log.info("the consumer closed the pipe")
        _exit(EXIT_CONSUMER_GONE)

    def _take(self, order: Any) -> None:
        if isinstance(order, Run):
            if self._claims.add(order.request.claim_id, item_id(order.request.job_id, order.request.index)):
                self._todo.put(order.request)
        elif isinstance(order, Interrupt):
            self._interrupt(order.claim_id)
        elif isinstance(order, Describe):
            threading.Thread(target=self._describe, name="describe", daemon=True).start()
        elif isinstance(order, Close):
            for claim_id in self._claims.all():
                self._interrupt(claim_id)
            self._todo.put(order)
        elif isinstance(order, Free):
            self._todo.put(order)

    def _interrupt(self, claim_id: str) -> None:
        stage, item = self._claims.interrupt(claim_id)
        if stage is Stage.QUEUED:
            self._send(Failed(claim_id, ItemInterrupted(item_id=item)))
        elif stage is Stage.RUNNING and self._engine is not None:
            self._engine.interrupt(claim_id)

    def _describe(self) -> None:
        self._engine_there.wait()
        assert self._engine is not None
        self._send(Described(self._engine.describe()))

    def _beat(self, harbour: Harbour) -> None:
        told: EngineReport | None = None
        while True:
            quiet_s = max(self._executing.quiet_s, harbour.life.quiet_s)
            # Before the engine is there, torch may be half imported.
            memory = self._engine.memory() if self._engine is not None and self._engine_there.is_set() else None
            self._send(Beat(quiet_s, memory.free_bytes, memory.total_bytes) if memory else Beat(quiet_s))
            if self._engine_there.is_set() and self._engine is not None and (report := report_of(self._engine)) != told:
                self._send(Reported(report))
                told = report
            time.sleep(self._options.beat_interval_s)


def report_of(engine: Engine) -> EngineReport:
    """What an engine tells about itself, with the name of its device."""
    name, uuid = device_identity()
    return replace(engine.report() if isinstance(engine, Reporting) else EngineReport(), device_name=name, device_uuid=uuid)


def open_blobs(options: EngineOptions) -> NearBlobStore:
    """The blob store that the options name; errors as `state.connection.connect`."""
    client = connect(options.blob_url, "DC_BLOB_URL")
    far = RedisBlobStore(client, prefix=options.key_prefix, chunk_bytes=options.chunk_bytes, ttl_s=options.blob_ttl_s)
    memory = open_shared_memory() if options.shared_memory else None
    if memory is not None:
        sweep_regularly(memory, _SWEEP_S)
    return NearBlobStore(far, memory, results_near=True)


def _set_up_logging(options: EngineOptions) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(make_formatter(options.log_format, "%(asctime)s %(levelname)s %(name)s: %(message)s", options.worker))
    logging.basicConfig(level=options.log_level, handlers=[handler])
    if options.log_format == "json":
        logging.captureWarnings(True)
        capture_prints(sys.stderr, make_formatter("json", "", options.worker))


def _create_engine(options: EngineOptions, context: GraphContext) -> Engine:
    """Raises `EngineStartFailed` too for a module that is not there."""
    sys.path += [path for path in options.import_paths if path not in sys.path]
    module, _, attribute = options.node_provider.partition(":")

    def provide_nodes(node_context: Any, **of_engine: Any) -> dict[str, type]:
        classes: dict[str, type] = getattr(importlib.import_module(module), attribute)(node_context, **of_engine)
        return classes

    try:
        engine: Engine = importlib.import_module(ENGINES[options.engine]).create_engine(options, context, provide_nodes)
    except ImportError as error:
        raise EngineStartFailed(reason=f"{sys.executable} cannot import what engine {options.engine} needs: {error}") from error
    return engine


def _record_execution(options: EngineOptions, request: RunRequest) -> None:
    """One line for the execution that begins, whole also when several engines share the file."""
    if options.execution_log is None:
        return
    line = f"{request.job_id} {request.index} {request.claim_id} {os.getpid()}\n"
    descriptor = os.open(options.execution_log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        os.write(descriptor, line.encode())
    finally:
        os.close(descriptor)


# -- life and death -----------------------------------------------------------------------------------------------------
def _die_with_consumer() -> None:
    """Leave it to the consumer, and to its death, when this process ends.

    A Ctrl-C or a service manager's SIGTERM reaches every process of a group, but the consumer may want to finish its item first.  Its
    death closes the pipe, which `_take_orders` sees; should that thread hang (a node that holds the GIL), Linux kills us as well.  That
    signal comes when the *thread* that started us ends, so `engine.host` starts us from a thread that lives as long as we do.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _heed_nothing)
    if sys.platform == "linux":
        set_parent_death_signal = 1  # PR_SET_PDEATHSIG
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)


def _heed_nothing(number: int, frame: FrameType | None) -> None:
    """A handler and not SIG_IGN, because programs that nodes start would inherit that."""


def _end_with_thread(args: threading.ExceptHookArgs) -> None:
    """A thread of ours that dies would leave a process that looks alive; threads that nodes start may die as they like."""
    threading.__excepthook__(args)
    if args.thread is not None and args.thread.name in ("orders", "outbox", "shipping", "beat", "describe"):
        _exit(EXIT_THREAD_DIED)


def _exit(status: int) -> NoReturn:
    """End at once: no handlers, no waiting for threads of nodes; the log is unbuffered, see `engine.host`."""
    os._exit(status)
